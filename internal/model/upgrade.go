package model

// The upgrade within custody: what the successor does, and what the predecessor does until one of both leaves.

func (c custodyStep) succeed(i int) {
	d := c.daemons[i]
	to := c.custody
	me := &to.daemons[i]
	does := func(what string) { c.do(names[i], what, step, to) }
	leaves := func(why string) {
		to := c.custody
		to.stop(i)
		c.do(names[i], why+", and leaves", step, to)
	}
	if old := c.daemons[d.other-1]; (old.at == off || old.other != uint8(i)+1) && !d.acked && d.at != relieving {
		leaves("sees its predecessor dead") // by its pidfd: what it said may still lie in the queue
	}
	switch d.at {
	case waiting:
		if d.whole {
			me.has, me.in, me.at = d.in, 0, following
			does("takes what its predecessor gave")
		}
	case following:
		c.openStore(i, claiming)
	case claiming:
		missing, _ := c.claim(i, me)
		me.unsaid, me.at = missing, prepared
		does("loads the store, takes its sockets, binds what is missing, says PREPARED")
	case prepared:
		if !d.told {
			return
		}
		if !c.keeper.alive {
			leaves("cannot tell a keeper that is dead")
			return
		}
		to.say(i, mainPID|word(i), barrier|word(i))
		me.at = telling
		if c.slip == successorWithoutBarrier {
			me.acked = true
		}
		does("reads YOURS, and tells the keeper that it is the daemon")
	case telling:
		if !d.acked {
			if !c.keeper.alive {
				leaves("gets no answer from a keeper that is dead")
			}
			return
		}
		if old := &to.daemons[d.other-1]; old.at == yours && old.other == uint8(i)+1 {
			old.told = true
		}
		to.sayItems(i, put, d.unsaid)
		me.at, me.told, me.unsaid = relieving, false, 0
		does("puts what it has opened, and says GOOD")
	case relieving:
		old := c.daemons[d.other-1]
		if !(old.at == yours && old.other == uint8(i)+1) || c.slip == successorServesAtOnce {
			me.at, me.other = serving, 0
			does("hears that its predecessor has closed everything, and serves")
		}
	}
}

func (c custodyStep) precede(i int) {
	d := c.daemons[i]
	to := c.custody
	me := &to.daemons[i]
	does := func(what string) { c.do(names[i], what, step, to) }
	switch d.at {
	case leaving:
		to.stop(i)
		does("leaves")
		return
	case back:
		switch {
		case !c.settled(i):
		case c.storeIsFree(i):
			me.at, me.open, me.other = serving, true, 0
			does("opens the store again, and serves on")
		}
		return
	}
	n := int(d.other) - 1
	if d.told && c.slip != predecessorIgnoresGood {
		me.at, me.told, me.has, me.other = leaving, false, 0, 0
		does("reads GOOD, and closes everything but its clients' connections")
		return
	}
	gone := c.daemons[n].at == off || c.daemons[n].other != uint8(i)+1 && !d.told
	if !gone && c.crashes > 0 {
		late := c.custody
		late.crashes--
		late.stop(n)
		c.do(names[i], "has waited too long, and kills its successor", fault, late)
	}
	if !gone && !c.keeper.alive && d.at < yours {
		late := c.custody
		late.stop(n)
		c.do(names[i], "sees the keeper dead, and kills its successor first", step, late)
	}
	switch {
	case gone && d.at == yours:
		to.say(i, mainPID|word(i), barrier|word(i))
		me.at = back
		does("sees its successor dead, and tells the keeper that it is the daemon")
	case gone && c.storeIsFree(i):
		me.at, me.open, me.other = serving, true, 0
		does("sees its successor dead, opens the store again, and serves on")
	case gone:
	case d.at == freezing:
		if d.inside == nothing || c.slip == freezesWithoutWaiting {
			me.at, me.open = closed, c.slip == storeStaysOpen
			does("closes the store")
		}
	case d.at == closed:
		me.at = given
		to.daemons[n].in, to.daemons[n].whole = d.has, true
		does("gives its successor its items, and says STORE")
	case d.at == given && c.daemons[n].at == prepared:
		me.at = yours
		to.daemons[n].told = true
		does("reads PREPARED, and says YOURS")
	}
}

// storeIsFree says that nobody else has it.
func (c *custody) storeIsFree(but int) bool {
	for i, d := range c.daemons {
		if i != but && d.open {
			return false
		}
	}
	return true
}
