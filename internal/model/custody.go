package model

import (
	"fmt"
	"strings"
)

// Who holds which socket, while daemons start, die, are upgraded and let a port go. There is one listening socket that is recorded all
// the time, one port that a client reserves and releases again, and the lock.

// items are descriptors: of one each there is no more to know.
type items uint8

const (
	theLock items = 1 << iota
	listener
	port
	allItems = theLock | listener | port
)

// daemons are as many as there can be at a time: the one that is restarted, a predecessor and a successor that have not noticed yet.
const daemons = 3

// queue is how many words the keeper's queue takes. Who says something says at most four in one step, and waits until they fit.
const queue = 9

// A place is where a daemon is in what it does.
type place uint8

const (
	off place = iota
	// The one path back.
	taking   // items from the keeper
	opening  // waits for the store
	loading  // has it, and goes through the items
	settling // waits until the keeper has closed what nobody claimed
	serving
	// A successor.
	waiting   // for the predecessor's items
	following // waits for the store
	claiming  // has it, and goes through the items
	prepared  // waits for YOURS
	telling   // that it is the daemon now, to the keeper
	relieving // is the daemon, and waits until the predecessor has closed its items
	// A predecessor.
	freezing // waits for the changes that are inside
	closed   // the store
	given    // its items
	yours    // said so
	back     // tells the keeper that it is still the daemon
	leaving
)

var places = [...]string{
	"off", "taking", "opening", "loading", "settling", "serving", "waiting", "following", "claiming", "prepared", "telling", "relieving",
	"freezing", "closed", "given", "yours", "back", "leaving",
}

// An inside is how far the client's change has come within a daemon.
type inside uint8

const (
	nothing inside = iota
	bound
	kept
	committed
	undone // waits for the keeper
	unrecorded
	letGo // waits for the keeper
	late  // answered, and only now kept: no daemon does so
)

// An errand is how far the client has come.
type errand uint8

const (
	wantsPort errand = iota
	asksPort
	hasPort
	asksRelease
	released
)

// A word is one of a daemon to the keeper.
type word uint8

const (
	_       word = iota << 4
	put          // with an item
	remove       // with an item
	barrier      // with the daemon
	mainPID      // with the daemon
	thatIsAll
)

type daemon struct {
	at      place
	has, in items // descriptors, and such as lie in the queue of the socket over which it gets them
	unsaid  items // opened while the keeper was told nothing
	whole   bool  // all that is to come is in the queue
	link    bool  // its socket to the keeper is the one that the keeper reads
	open    bool  // has the store
	knows   bool  // that the port is recorded
	acked   bool  // the barrier
	told    bool  // there is YOURS in the successor's queue, GOOD in the predecessor's
	inside  inside
	other   uint8 // its successor or predecessor, plus one
}

type keeper struct {
	alive   bool
	has     items
	left    items // to be given to the child still
	gives   bool
	child   uint8 // plus one
	whole   bool  // has been told everything
	unheard [queue]word
}

// custody is one state of all that.
type custody struct {
	daemons  [daemons]daemon
	keeper   keeper
	recorded bool // the port, in the store
	client   errand
	refused  bool // the client was told that the port is taken, and a portd had it
	excused  bool // keeper and daemon died at once
	crashes  uint8
	upgrades uint8
	failures uint8
}

// A slip is a mistake that a portd could make: the search must find each. There is none in portd.
type slip uint8

const (
	noSlip slip = iota
	putsAfterAnswer
	releasesWithoutBarrier
	undoesWithoutBarrier
	servesBeforeUnclaimedIsClosed
	freezesWithoutWaiting
	successorWithoutBarrier
	predecessorIgnoresGood
	successorOutlives
	keeperActsOnDeathFirst
	keeperSparesPredecessor
	newKeeperGetsHalf
	storeStaysOpen // and its file has no lock
	successorServesAtOnce
)

// custodyBounds say how much happens in one run.
type custodyBounds struct {
	crashes, upgrades, failures uint8
	slip                        slip
	strict                      bool // nothing excuses a loss
}

var names = [daemons]string{"daemon A", "daemon B", "daemon C"}

func (b custodyBounds) system() system[custody] {
	first := custody{crashes: b.crashes, upgrades: b.upgrades, failures: b.failures}
	first.daemons[0] = daemon{at: serving, has: theLock | listener, link: true, open: true}
	first.keeper = keeper{alive: true, has: theLock | listener, child: 1, whole: true}
	return system[custody]{
		start: []custody{first},
		next:  func(s custody, do func(string, string, kind, custody)) { custodyStep{s, b.slip, do}.all() },
		broken: func(s custody) string {
			if b.strict {
				s.excused = false
			}
			return s.broken()
		},
		working: custody.working,
		show:    custody.String,
	}
}

// custodyStep is what can happen in one state.
type custodyStep struct {
	custody
	slip slip
	do   func(who, what string, k kind, to custody)
}

func (c custodyStep) all() {
	c.keeperSteps()
	for i := range c.daemons {
		if c.daemons[i].at == off {
			continue
		}
		c.daemonSteps(i)
		if c.crashes > 0 {
			to := c.custody
			to.crashes--
			to.excused = to.excused || c.bothDown(i)
			if n := c.successor(i); n >= 0 && c.slip != successorOutlives {
				to.stop(n) // by PR_SET_PDEATHSIG, before anybody hears of it
			}
			to.stop(i)
			c.do(names[i], "is killed", fault, to)
		}
	}
	if c.keeper.alive && c.crashes > 0 {
		to := c.custody
		to.crashes--
		to.excused = to.excused || !c.someoneHasAll()
		to.keeper = keeper{}
		c.do("keeper", "is killed", fault, to)
	}
	if !c.keeper.alive && c.daemons == [daemons]daemon{} {
		to := c.custody
		to.keeper = keeper{alive: true, whole: true}
		c.do("somebody", "starts portd anew", step, to)
	}
	to := c.custody
	if c.client == hasPort {
		to.client = asksRelease
		c.do("client", "wants to release the port", step, to)
	}
}

// bothDown says that the death of daemon i comes while there is no keeper that has everything, and no other daemon.
func (c custodyStep) bothDown(i int) bool {
	if c.keeper.alive && c.keeper.whole || !c.daemons[i].leads() {
		return false
	}
	for j, d := range c.daemons {
		if j != i && d.leads() {
			return false
		}
	}
	return true
}

// someoneHasAll says that there is a daemon that goes on when the keeper dies.
func (c custodyStep) someoneHasAll() bool {
	for _, d := range c.daemons {
		if d.leads() && (d.at != taking || d.whole) {
			return true
		}
	}
	return false
}

// leads says that d is the daemon, and not one that is to become it, or was it until its successor said GOOD.
func (d daemon) leads() bool {
	return d.at != off && d.link && (d.at < waiting || d.at == relieving || d.at >= freezing && d.at < leaving && !d.told)
}

// successor is that of daemon i, which has not become the daemon yet, or -1.
func (c *custody) successor(i int) int {
	for n, d := range c.daemons {
		if d.at >= waiting && d.at <= telling && d.other == uint8(i)+1 && c.daemons[i].other == uint8(n)+1 {
			return n
		}
	}
	return -1
}

func (c *custody) stop(i int) {
	if c.daemons[i].inside != nothing {
		switch c.client {
		case asksPort:
			c.client = wantsPort
		case asksRelease: // asks again
		}
	}
	c.daemons[i] = daemon{}
}

// anyone has which items, in a table or in a queue.
func (c *custody) anyone(but int) (all items) {
	for i, d := range c.daemons {
		if i != but {
			all |= d.has | d.in
		}
	}
	all |= c.keeper.has
	for _, w := range c.keeper.unheard {
		if w&0xf0 == put {
			all |= items(w & 0xf)
		}
	}
	return all
}

// free is a daemon that is not there, or -1.
func (c *custody) free() int {
	for i, d := range c.daemons {
		if d.at == off {
			return i
		}
	}
	return -1
}

// predecessor is a daemon that was one before another became it, and is still there, or -1.
func (c *custody) predecessor() int {
	for i, d := range c.daemons {
		if d.at >= freezing {
			return i
		}
	}
	return -1
}

// say puts words into the keeper's queue, where there is one at the other end.
func (c *custody) say(i int, words ...word) {
	if !c.keeper.alive || !c.daemons[i].link {
		return
	}
	n := 0
	for c.keeper.unheard[n] != 0 {
		n++
	}
	for _, w := range words {
		if w&0xf0 == barrier {
			c.daemons[i].acked = false
		}
		c.keeper.unheard[n] = w
		n++
	}
}

func (c *custody) sayItems(i int, w word, all items) {
	for one := theLock; one <= port; one <<= 1 {
		if all&one != 0 {
			c.say(i, w|word(one))
		}
	}
}

// settled says that what daemon i said has been done, or that there is no keeper to do it.
func (c *custody) settled(i int) bool { return c.daemons[i].acked || !c.keeper.alive }

func (c custodyStep) keeperSteps() {
	k := c.keeper
	if !k.alive {
		return
	}
	to := c.custody
	if w := k.unheard[0]; w != 0 {
		copy(to.keeper.unheard[:], k.unheard[1:])
		to.keeper.unheard[len(k.unheard)-1] = 0
		switch arg := w & 0xf; w & 0xf0 {
		case put:
			to.keeper.has |= items(arg)
		case remove:
			to.keeper.has &^= items(arg)
		case barrier:
			to.daemons[arg].acked = to.daemons[arg].at != off
		case mainPID:
			to.keeper.child = uint8(arg) + 1
		case thatIsAll:
			to.keeper.whole = true
		}
		c.do("keeper", "does as it was told: "+w.String(), step, to)
	}
	childDead := k.child == 0 || c.daemons[k.child-1].at == off
	if childDead && (k.unheard[0] == 0 || c.slip == keeperActsOnDeathFirst) {
		i := c.free()
		if left := c.predecessor(); left >= 0 && c.slip != keeperSparesPredecessor {
			to := c.custody
			to.stop(left)
			c.do("keeper", "kills what the dead one left: "+names[left], step, to)
		} else if i >= 0 {
			to := c.custody
			for j := range to.daemons {
				to.daemons[j].link = false
			}
			to.daemons[i] = daemon{at: taking, link: true}
			to.keeper.child, to.keeper.left, to.keeper.gives = uint8(i)+1, k.has, true
			to.keeper.unheard = [queue]word{}
			c.do("keeper", "starts "+names[i], step, to)
		}
	}
	if k.gives && !childDead {
		to := c.custody
		d := &to.daemons[k.child-1]
		if one := k.left & -k.left; one != 0 {
			d.in |= one
			to.keeper.left &^= one
			c.do("keeper", "gives an item: "+one.String(), step, to)
		} else {
			d.whole, to.keeper.gives = true, false
			c.do("keeper", "says that this was all", step, to)
		}
	}
}

func (c custodyStep) daemonSteps(i int) {
	d := c.daemons[i]
	if c.keeper.alive && c.keeper.unheard[queue-4] != 0 {
		return
	}
	switch {
	case d.at <= serving:
		c.start(i)
		c.change(i)
	case d.at < freezing:
		c.succeed(i)
	default:
		c.precede(i)
		c.change(i)
	}
}

// start is the one path back, and what a daemon does beside its clients' changes.
func (c custodyStep) start(i int) {
	d := c.daemons[i]
	to := c.custody
	me := &to.daemons[i]
	does := func(what string) { c.do(names[i], what, step, to) }
	if !c.keeper.alive && d.at != taking {
		to.newKeeper(i, c.slip)
		does("sees the keeper dead, and starts a new one")
		to = c.custody
	}
	switch d.at {
	case taking:
		switch {
		case d.in != 0:
			me.has, me.in = d.has|d.in, 0
			does("takes what has come")
		case d.whole:
			me.at = opening
			does("has all that the keeper had")
		case !c.keeper.alive:
			me.at = opening
			does("sees the keeper dead, and goes on with what it has")
		}
	case opening:
		switch {
		case d.has&theLock != 0:
			c.openStore(i, loading)
		case c.anyone(-1)&theLock == 0:
			me.has |= theLock
			to.say(i, put|word(theLock))
			does("takes the lock anew")
		default:
			to.stop(i)
			does("finds the lock taken, and leaves")
		}
	case loading:
		missing, unclaimed := c.claim(i, me)
		to.sayItems(i, put, missing)
		to.sayItems(i, remove, unclaimed)
		to.say(i, barrier|word(i))
		me.at = settling
		if c.slip == servesBeforeUnclaimedIsClosed {
			me.at = serving
		}
		does("loads the store, takes its sockets, binds what is missing, closes what nobody claimed")
	case settling:
		if c.settled(i) {
			me.at = serving
			does("serves")
		}
	case serving:
		if lost := d.wants() &^ d.has &^ c.anyone(-1); lost != 0 {
			me.has |= lost
			to.sayItems(i, put, lost)
			does("takes back a port that was lost: " + lost.String())
		}

		if n := c.free(); n >= 0 && c.upgrades > 0 {
			to := c.custody
			to.upgrades--
			to.daemons[i].at, to.daemons[i].other = freezing, uint8(n)+1
			to.daemons[n] = daemon{at: waiting, link: true, other: uint8(i) + 1}
			c.do(names[i], "starts its successor, "+names[n]+", and lets no change in", step, to)
		}
	}
}

// openStore is bbolt's: one has the file, the next one waits, and gives up some time.
func (c custodyStep) openStore(i int, then place) {
	to := c.custody
	if !c.storeIsFree(i) && c.slip != storeStaysOpen {
		if c.keeper.alive { // else its sockets would be nobody's
			to.stop(i)
			c.do(names[i], "waits for the store too long, and leaves", step, to)
		}
		return
	}
	to.daemons[i].open, to.daemons[i].at = true, then
	c.do(names[i], "opens the store", step, to)
}

// wants is what a daemon is to have by the store.
func (d daemon) wants() items {
	if d.knows {
		return allItems
	}
	return allItems &^ port
}

// claim reads the store. What is missing is bound where nobody has it, and what is not wanted closed.
func (c *custody) claim(i int, me *daemon) (missing, unclaimed items) {
	me.knows = c.recorded
	missing = me.wants() &^ me.has &^ c.anyone(i)
	unclaimed = me.has &^ me.wants()
	me.has = me.has&^unclaimed | missing
	return missing, unclaimed
}

func (c *custody) newKeeper(i int, s slip) {
	c.keeper = keeper{alive: true, child: uint8(i) + 1}
	for j := range c.daemons {
		c.daemons[j].link = j == i
	}
	all := c.daemons[i].has
	if s == newKeeperGetsHalf {
		all &^= port
	}
	c.sayItems(i, put, all)
	c.say(i, thatIsAll)
	if d := c.daemons[i]; d.at == settling || d.inside == undone || d.inside == letGo {
		c.say(i, barrier|word(i)) // for who waits already
	}
}

// change is what becomes of the client's request in daemon i.
func (c custodyStep) change(i int) {
	d := c.daemons[i]
	to := c.custody
	me := &to.daemons[i]
	does := func(what string) { c.do(names[i], what, step, to) }
	switch d.inside {
	case nothing:
		if d.at != serving {
			return
		}
		switch {
		case c.client == wantsPort && d.knows:
			to.client = hasPort
			does("answers that the port is the client's already")
		case c.client == wantsPort && c.anyone(-1)&port != 0:
			to.refused = true
			does("cannot bind the port, and refuses it")
		case c.client == wantsPort:
			to.client, me.inside, me.has = asksPort, bound, d.has|port
			does("binds the port")
		case c.client == asksRelease && !d.knows:
			to.client = released
			does("answers that nobody has the port")
		case c.client == asksRelease:
			me.inside, me.knows, to.recorded = unrecorded, false, false
			does("commits the release")
		}
	case bound:
		if me.inside = kept; c.slip != putsAfterAnswer {
			to.say(i, put|word(port))
		}
		does("puts the port")
	case kept:
		me.inside, me.knows, to.recorded = committed, true, true
		does("commits the reservation")
		if c.failures > 0 {
			to := c.custody
			to.failures--
			to.daemons[i].has &^= port
			to.daemons[i].inside = undone
			to.say(i, remove|word(port), barrier|word(i))
			if c.slip == undoesWithoutBarrier {
				to.daemons[i].inside, to.client = nothing, wantsPort
			}
			c.do(names[i], "cannot commit, and lets go of the port", fault, to)
		}
	case committed:
		to.client, me.inside = hasPort, nothing
		if c.slip == putsAfterAnswer {
			me.inside = late
		}
		does("answers that the port is reserved")
	case late:
		me.inside = nothing
		to.say(i, put|word(port))
		does("puts the port")
	case undone:
		if c.settled(i) {
			me.inside, to.client = nothing, wantsPort
			does("answers that it could not")
		}
	case unrecorded:
		me.has, me.inside = d.has&^port, letGo
		to.say(i, remove|word(port), barrier|word(i))
		if c.slip == releasesWithoutBarrier {
			me.inside, to.client = nothing, released
		}
		does("closes the port and has it removed")
	case letGo:
		if c.settled(i) {
			me.inside, to.client = nothing, released
			does("answers that the port is released")
		}
	}
}

// broken says which promise s breaks.
func (c custody) broken() string {
	openers, servers := 0, 0
	held := c.anyone(-1)
	for _, d := range c.daemons {
		if d.open {
			openers++
		}
		if d.at == serving {
			servers++
			switch {
			case !d.open:
				return "a daemon serves without the store"
			case d.knows != c.recorded:
				return "a daemon serves that does not know what is in the store"
			case d.wants()&^d.has != 0 && !c.excused:
				return "a daemon serves, and does not have what is recorded: " + (d.wants() &^ d.has).String()
			}
		}
	}
	switch {
	case openers > 1:
		return "two have the store"
	case servers > 1:
		return "two daemons serve"
	case held&listener == 0 && !c.excused:
		return "nobody holds the listening socket"
	case c.recorded && held&port == 0 && !c.excused:
		return "the port is recorded, and nobody holds it"
	case c.client == hasPort && !c.recorded:
		return "an answered reservation is gone"
	case c.client == released && c.recorded:
		return "an answered release is undone"
	case c.client == released && held&port != 0:
		return "a port that was answered as released is held by a portd"
	case c.refused:
		return "a client is refused a port that only a portd has"
	}
	return ""
}

// working says that one daemon serves, that the keeper has all of it, and that the client has had its way.
func (c custody) working() bool {
	k := c.keeper
	if !k.alive || k.child == 0 || !k.whole || k.gives || k.unheard[0] != 0 || c.client != released {
		return false
	}
	for i, d := range c.daemons {
		if i == int(k.child)-1 {
			if d.at != serving || !d.link || d.inside != nothing || d.has != k.has || d.wants() != d.has {
				return false
			}
		} else if d.at != off {
			return false
		}
	}
	return true
}

func (c custody) String() string {
	var b strings.Builder
	for i, d := range c.daemons {
		if d.at != off {
			fmt.Fprintf(&b, "%s %s has %v; ", names[i], places[d.at], d.has)
			if d.in != 0 {
				fmt.Fprintf(&b, "%v lies in its queue; ", d.in)
			}
		}
	}
	if c.keeper.alive {
		fmt.Fprintf(&b, "keeper has %v; ", c.keeper.has)
		for _, w := range c.keeper.unheard {
			if w != 0 {
				fmt.Fprintf(&b, "%v, ", w)
			}
		}
	}
	fmt.Fprintf(&b, "port recorded: %v", c.recorded)
	return b.String()
}

func (w word) String() string {
	switch arg := w & 0xf; w & 0xf0 {
	case put:
		return "keep " + items(arg).String()
	case remove:
		return "remove " + items(arg).String()
	case barrier:
		return "barrier of " + names[arg]
	case mainPID:
		return "the daemon is " + names[arg]
	case thatIsAll:
		return "that is all"
	}
	return "?"
}

func (all items) String() string {
	var s []string
	for i, name := range []string{"lock", "listener", "port"} {
		if all&(1<<i) != 0 {
			s = append(s, name)
		}
	}
	return "{" + strings.Join(s, " ") + "}"
}
