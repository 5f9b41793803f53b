package model

// The one path back within custody, and what a daemon does that serves.

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
