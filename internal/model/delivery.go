package model

import (
	"fmt"
	"strings"
)

// Who has which connection, between accept and the worker that serves it, while daemons die, take connections back, recover and are upgraded.
// A dead daemon's table of descriptors lives on in its holder. There are two connections, two workers, and one message is one connection.

const (
	conns   = 2
	workers = 2
	rooms   = 2 // messages in a worker's queue
	tables  = 4 // of daemons and of holders, at a time
	most    = 4 // messages to a worker: one that is dead and not known to be would get and give back the same one for ever
	nobody  = 0xf
)

// set is one of connections, of workers or of tables, by their numbers.
type set uint8

func (s set) has(n uint8) bool     { return s&(1<<n) != 0 }
func (s set) with(n uint8) set     { return s | 1<<n }
func (s set) without(n uint8) set  { return s &^ (1 << n) }
func (s set) first() (uint8, bool) { return s.from(0) }
func (s set) from(n uint8) (uint8, bool) {
	for ; n < 8; n++ {
		if s.has(n) {
			return n, true
		}
	}
	return 0, false
}

// An act is what the ledger's journal says that the daemon is about to do.
type act uint8

const (
	idle act = iota
	accepting
	sending  // a connection to a worker, in a message with a number
	peeking  // at what lies in a worker's queue
	retaking // that, with its number
)

// ledger is the memory that a daemon shares with its successors. Its owner says whose numbers those of the descriptors are.
type ledger struct {
	owner uint8
	act   act
	conn  uint8
	to    uint8
	seq   uint8
	hands set            // accepted, and not yet sent
	sent  [workers]uint8 // number of the last message to each
}

// A stage is where a daemon's engine is.
type stage uint8

const (
	absent   stage = iota
	turning        // looks what to do next
	accepts        // has written that it will
	accepted       // one, which is written nowhere
	noted          // in the ledger
	sends          // has written that it will
	sent           // a message
	shut           // its own descriptor of it
	peeks          // has written that it will
	peeked         // has a duplicate of what lies in a queue
	retakes        // has written that it will
	retaken        // has received it, too, or another one
	// Recovery.
	asking   // the ledger and the queues
	asked    // the queue, and then the page
	fetching // from the holder
	keeping  // has everything; its own holder is not kept yet
	writing  // the ledger anew
	ending   // the dead one's holder
	// Upgrade.
	suspended // after its message; the successor has duplicates of what is in its hands
	receiving // those
	told      // the keeper that it is the daemon
	taken     // by the keeper as the daemon
	owning    // its own holder is kept
)

var stages = [...]string{
	"absent", "turning", "accepts", "accepted", "noted", "sends", "sent", "shut", "peeks", "peeked", "retakes", "retaken",
	"asking", "asked", "fetching", "keeping", "writing", "ending", "suspended", "receiving", "told", "taken", "owning",
}

type engine struct {
	at     stage
	conn   uint8
	to     uint8
	seq    uint8
	second bool         // what was received is not what was peeked at
	table  [conns]uint8 // how many descriptors of each
	socks  set          // of holders that it got from the keeper
	next   ledger       // what it is going to write
	other  uint8        // predecessor or successor, plus one
}

type message struct{ seq, conn uint8 } // seq 0: none

type worker struct {
	dead, gone bool // and let go by portd
	odd        bool // its turn: it is taking
	got        message
	taken      uint8
	queue      [rooms]message
}

// delivery is one state of all that.
type delivery struct {
	engines                                  [tables]engine
	ledger                                   ledger
	workers                                  [workers]worker
	backlog                                  set
	served                                   [conns]uint8
	lost                                     set // with the worker or, without a holder, with the daemon: known and counted
	badSeq                                   bool
	keeper                                   bool
	holders                                  set // whose sockets the keeper has
	main                                     uint8
	crashes, workerDeaths, retakes, upgrades uint8
}

// What deliveries can go wrong by, in addition to those of custody.
const (
	enumeratesAlways slip = 100 + iota
	pageBeforeQueue
	guessesOddTurn
	ownHolderReplaces
	writesInTwoSteps
	engineBeforeKeeper
	writesBeforeKeeper
	putsBeforeKeeper
	sendsUnwritten
	pageSaysRetaken
)

type deliveryBounds struct {
	crashes, workerDeaths, retakes, upgrades uint8
	noHolder                                 bool
	slip                                     slip
}

var (
	engineNames = [tables]string{"daemon A", "daemon B", "daemon C", "daemon D"}
	workerNames = [workers]string{"worker 1", "worker 2"}
)

func (b deliveryBounds) system() system[delivery] {
	first := delivery{
		keeper: true, backlog: 1<<conns - 1, holders: 1,
		crashes: b.crashes, workerDeaths: b.workerDeaths, retakes: b.retakes, upgrades: b.upgrades,
	}
	first.engines[0].at = turning
	return system[delivery]{
		start:   []delivery{first},
		next:    func(s delivery, do func(string, string, kind, delivery)) { deliveryStep{s, b, do}.all() },
		broken:  delivery.broken,
		working: delivery.working,
		show:    delivery.String,
	}
}

type deliveryStep struct {
	delivery
	deliveryBounds
	do func(who, what string, k kind, to delivery)
}

// holds says that table n lives on in a holder: somebody has the other end of its socket.
func (s *delivery) holds(n uint8) bool {
	if s.holders.has(n) {
		return true
	}
	for _, e := range s.engines {
		if e.at != absent && e.socks.has(n) {
			return true
		}
	}
	return false
}

// bury empties the tables that nobody has any more.
func (s *delivery) bury(b deliveryBounds) {
	for n := range s.engines {
		e := &s.engines[n]
		if e.at == absent && (b.noHolder || !s.holds(uint8(n))) {
			*e = engine{}
			s.holders = s.holders.without(uint8(n))
		}
	}
}

// daemon is the one that is to go on when the keeper dies: there is none while it is being started.
func (s *delivery) leads(n uint8) bool { return s.engines[n].at != absent && s.main == n }

func (d deliveryStep) all() {
	for n := range uint8(tables) {
		e := d.engines[n]
		if e.at == absent {
			continue
		}
		d.engine(n)
		// Without a keeper the death of the daemon is that of both at once: see custody.go.
		if d.delivery.crashes > 0 && d.keeper {
			to := d.delivery
			to.crashes--
			to.die(n, d.deliveryBounds)
			d.do(engineNames[n], "is killed", fault, to)
		}
	}
	for n := range uint8(workers) {
		d.worker(n)
	}
	if d.keeper && d.delivery.crashes > 0 && d.leads(d.main) {
		to := d.delivery
		to.crashes--
		to.keeper, to.holders = false, 0
		to.bury(d.deliveryBounds)
		d.do("keeper", "is killed", fault, to)
	}
	if d.keeper && d.engines[d.main].at == absent {
		for n := range uint8(tables) {
			if other := d.engines[n]; other.at == suspended {
				to := d.delivery
				to.die(n, d.deliveryBounds)
				d.do("keeper", "kills what the dead one left: "+engineNames[n], step, to)
				return
			}
		}
		for n := range uint8(tables) {
			if d.engines[n].at == absent && (d.noHolder || !d.holds(n)) {
				to := d.delivery
				to.engines[n] = engine{at: asking, socks: d.holders}
				to.main = n
				d.do("keeper", "starts "+engineNames[n]+", and gives it the holders' sockets", step, to)
				break
			}
		}
	}
}

// die is the end of daemon n. Its successor, if it is not the daemon yet, dies with it.
func (s *delivery) die(n uint8, b deliveryBounds) {
	for m := range s.engines {
		if e := &s.engines[m]; e.other == n+1 && (e.at == receiving || e.at == told) && s.main == n {
			e.at, e.socks, e.other = absent, 0, 0
		}
	}
	e := &s.engines[n]
	if b.noHolder {
		for c := range uint8(conns) {
			if e.table[c] > 0 && !s.elsewhere(c, n) {
				s.lost = s.lost.with(c)
			}
		}
	}
	table := e.table
	*e = engine{table: table}
	s.bury(b)
}

// elsewhere says whether somebody has connection c, apart from table but.
func (s *delivery) elsewhere(c, but uint8) bool {
	if s.backlog.has(c) {
		return true
	}
	for n, e := range s.engines {
		if uint8(n) != but && e.table[c] > 0 {
			return true
		}
	}
	for _, w := range s.workers {
		for _, m := range w.queue {
			if m.seq != 0 && m.conn == c {
				return true
			}
		}
		if !w.dead && w.got.seq != 0 && w.got.conn == c {
			return true
		}
	}
	return s.served[c] > 0
}

func (s delivery) broken() string {
	for c := range uint8(conns) {
		if s.served[c] > 1 {
			return fmt.Sprintf("connection %d is served twice", c+1)
		}
		if !s.elsewhere(c, nobody) && !s.lost.has(c) {
			return fmt.Sprintf("connection %d is lost", c+1)
		}
	}
	if s.badSeq {
		return "two messages to a worker have one number"
	}
	return ""
}

func (s delivery) working() bool {
	if !s.keeper || s.engines[s.main].at != turning || s.ledger.owner != s.main {
		return false
	}
	for n, e := range s.engines {
		if e.at != absent && uint8(n) != s.main || e.table != [conns]uint8{} {
			return false // a client would wait for the end of its connection
		}
	}
	for c := range uint8(conns) {
		if s.served[c] == 0 && !s.lost.has(c) {
			return false
		}
	}
	return true
}

// worker is what worker n does: it says that it takes, receives, and says what it has received before it serves that.
func (d deliveryStep) worker(n uint8) {
	w := d.workers[n]
	to := d.delivery
	me := &to.workers[n]
	switch {
	case w.dead:
		return
	case !w.odd && w.queue[0].seq != 0:
		me.odd = true
		d.do(workerNames[n], "begins to take", step, to)
	case w.odd && w.got.seq == 0 && w.queue[0].seq == 0:
		me.odd = false
		d.do(workerNames[n], "finds nothing", step, to)
	case w.odd && w.got.seq == 0:
		me.got, me.queue = w.queue[0], [rooms]message{w.queue[1]}
		d.do(workerNames[n], fmt.Sprintf("receives connection %d", w.queue[0].conn+1), step, to)
	case w.odd:
		me.odd, me.taken, me.got = false, w.got.seq, message{}
		to.served[w.got.conn] = min(2, to.served[w.got.conn]+1)
		d.do(workerNames[n], fmt.Sprintf("says so, and serves connection %d", w.got.conn+1), step, to)
	}
	// One worker stays, or nobody could be served.
	if d.delivery.workerDeaths > 0 && n == 0 {
		to := d.delivery
		to.workerDeaths--
		to.workers[n].dead = true
		if w.got.seq != 0 {
			to.lost = to.lost.with(w.got.conn)
			to.workers[n].got = message{}
		}
		d.do(workerNames[n], "is killed", fault, to)
	}
}

func (s delivery) String() string {
	var b strings.Builder
	for n, e := range s.engines {
		if e.at != absent || e.table != [conns]uint8{} {
			fmt.Fprintf(&b, "%s %s, descriptors %v; ", engineNames[n], stages[e.at], e.table)
		}
	}
	for n, w := range s.workers {
		fmt.Fprintf(&b, "%s dead %v odd %v taken %d queue %v; ", workerNames[n], w.dead, w.odd, w.taken, w.queue)
	}
	fmt.Fprintf(&b, "ledger %+v; keeper %v holders %b; served %v", s.ledger, s.keeper, s.holders, s.served)
	return b.String()
}
