package model

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
