package model

import (
	"fmt"
	"strings"
)

// What custody promises.

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
