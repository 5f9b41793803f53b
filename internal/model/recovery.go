package model

// How a daemon comes to the connections of the one before it within delivery: after its death, by the ledger and its holder, and in an upgrade.

func (d deliveryStep) recover(n uint8) {
	e, l := d.engines[n], d.ledger
	var table [conns]uint8 // the dead one's
	if !d.noHolder && l.owner != n {
		table = d.engines[l.owner].table
	}
	w := d.workers[l.to]
	queued := l.seq != 0 && (w.queue[0].seq == l.seq || w.queue[1].seq == l.seq)
	switch e.at {
	case asking:
		if strange := e.socks.without(l.owner); strange != 0 {
			d.does(n, "ends the holders that the ledger does not name", asking, func(s *delivery, me *engine) {
				me.socks &^= strange
				s.holders &^= strange
				s.bury(d.deliveryBounds)
			})
			return
		}
		next := l
		next.act, next.conn, next.to, next.seq = idle, 0, 0, 0
		switch {
		case l.act == accepting || d.slip == enumeratesAlways:
			for c := range uint8(conns) {
				if table[c] > 0 && !(l.act == sending && c == l.conn) {
					next.hands = next.hands.with(c)
				}
			}
		case l.act == retaking:
			// There is one descriptor of what was peeked at, and a second one if it was received. What else is there came in its place.
			for c := range uint8(conns) {
				if table[c] > 1 || table[c] > 0 && c != l.conn {
					next.hands = next.hands.with(c)
				}
			}
		}
		if l.act != sending && (l.act != retaking || d.slip != pageSaysRetaken) {
			d.does(n, "reads in the ledger what is in its hands", fetching, func(s *delivery, me *engine) { me.next = next })
			return
		}
		if d.slip == pageBeforeQueue {
			if !w.odd || w.dead || w.taken >= l.seq {
				d.does(n, "reads the page", asked, func(s *delivery, me *engine) { me.next, me.second = next, w.taken >= l.seq })
			}
			return
		}
		d.does(n, "looks into the queue", asked, func(s *delivery, me *engine) { me.next, me.second = next, queued })
	case asked:
		var theirs bool
		switch {
		case d.slip == pageBeforeQueue:
			theirs = e.second || queued
		case e.second || w.taken >= l.seq:
			theirs = true
		case w.odd && !w.dead && d.slip != guessesOddTurn:
			return // it is just taking: what, it will say
		}
		if theirs {
			d.does(n, "finds that the message is the worker's", fetching, func(s *delivery, me *engine) {
				me.next.hands = me.next.hands.without(l.conn)
				me.next.sent[l.to] = max(me.next.sent[l.to], l.seq)
			})
			return
		}
		d.does(n, "finds that the message is in its hands", fetching, func(s *delivery, me *engine) {
			me.next.hands = me.next.hands.with(l.conn)
		})
	case fetching:
		d.does(n, "takes from the holder what is in its hands", keeping, func(s *delivery, me *engine) {
			for c := range uint8(conns) {
				switch {
				case !me.next.hands.has(c):
				case table[c] > 0:
					me.table[c] = 1
				default:
					me.next.hands = me.next.hands.without(c)
				}
			}
		})
	case keeping:
		d.does(n, "has its own holder kept", writing, func(s *delivery, me *engine) {
			if d.slip == ownHolderReplaces {
				s.holders = 0
			}
			s.holders = s.holders.with(n)
		})
	case writing:
		if d.slip == writesInTwoSteps && (l.act != idle) {
			d.does(n, "clears the journal", writing, func(s *delivery, me *engine) {
				s.ledger.act, s.ledger.conn, s.ledger.to, s.ledger.seq = idle, 0, 0, 0
			})
			return
		}
		d.does(n, "writes the ledger anew, as its own", ending, func(s *delivery, me *engine) {
			s.ledger = e.next
			s.ledger.owner = n
		})
	case ending:
		d.does(n, "ends the other holder, and begins", turning, func(s *delivery, me *engine) {
			me.socks, me.other = 0, 0
			s.holders &= 1 << n
			s.bury(d.deliveryBounds)
		})
	}
}

func (d deliveryStep) upgrade(n uint8) {
	e := d.engines[n]
	leaves := func(why string) {
		to := d.delivery
		to.engines[n] = engine{}
		to.holders = to.holders.without(n)
		d.do(engineNames[n], why+", and leaves", step, to)
	}
	switch e.at {
	case suspended:
		m := e.other - 1
		switch {
		case d.main != n:
			if d.ledger.owner != n && d.engines[m].at != taken && d.engines[m].at != owning {
				to := d.delivery
				to.die(n, deliveryBounds{})
				d.do(engineNames[n], "reads GOOD, and leaves", step, to)
			}
		case d.engines[m].other != n+1:
			d.does(n, "sees its successor dead, and goes on", turning, func(s *delivery, me *engine) { me.other = 0 })
		}
	case receiving:
		if d.slip == engineBeforeKeeper {
			d.does(n, "begins before the keeper knows", turning, nil)
		}
		if !d.keeper {
			leaves("sees the keeper dead")
			return
		}
		d.does(n, "tells the keeper that it is the daemon", told, func(s *delivery, me *engine) {
			if d.slip == putsBeforeKeeper || d.slip == writesBeforeKeeper {
				s.holders = s.holders.with(n)
			}
			if d.slip == writesBeforeKeeper {
				s.ledger.owner = n
			}
		})
	case told:
		if !d.keeper {
			leaves("sees the keeper dead")
			return
		}
		to := d.delivery
		to.main = n
		to.engines[n].at = taken
		d.do("keeper", "takes "+engineNames[n]+" for the daemon", step, to)
	case taken:
		if d.keeper {
			d.does(n, "has its holder kept", owning, func(s *delivery, me *engine) { s.holders = s.holders.with(n) })
			return
		}
		fallthrough // a new keeper gets it
	case owning:
		d.does(n, "writes the ledger as its own, and says GOOD", ending, func(s *delivery, me *engine) { s.ledger.owner = n })
	}
}
