package model

import "fmt"

// What a daemon's engine does within delivery. Each system call and each word written to the ledger is a step.

func (d deliveryStep) engine(n uint8) {
	e := d.engines[n]
	if !d.keeper && d.leads(n) && e.at < suspended {
		to := d.delivery
		to.keeper, to.holders = true, e.socks.with(n)
		to.bury(d.deliveryBounds)
		d.do(engineNames[n], "sees the keeper dead, and starts a new one with a new holder", step, to)
	}
	switch {
	case e.at == turning:
		d.turn(n)
	case e.at < peeks:
		d.handOver(n)
	case e.at < asking:
		d.takeBack(n)
	case e.at < suspended:
		d.recover(n)
	default:
		d.upgrade(n)
	}
}

// does is a step of daemon n.
func (d deliveryStep) does(n uint8, what string, then stage, change func(*delivery, *engine)) {
	to := d.delivery
	me := &to.engines[n]
	me.at = then
	if change != nil {
		change(&to, me)
	}
	if then == turning {
		me.conn, me.to, me.seq, me.second, me.next = 0, 0, 0, false, ledger{}
	}
	d.do(engineNames[n], what, step, to)
}

// turn chooses what to do next.
func (d deliveryStep) turn(n uint8) {
	for to := range uint8(workers) {
		w := d.workers[to]
		if w.gone {
			continue
		}
		// A worker that is dead is not known to be, until its queue is emptied.
		if w.queue[rooms-1].seq == 0 && d.ledger.sent[to] < most {
			if c, ok := d.ledger.hands.first(); ok {
				d.does(n, "writes that it will send what is in its hands to "+workerNames[to], sends, d.intend(c, to))
			} else if d.backlog != 0 {
				d.does(n, "writes that it will accept for "+workerNames[to], accepts, func(s *delivery, me *engine) {
					s.ledger.act, me.to = accepting, to
				})
			}
		}
		if w.queue[0].seq != 0 && (w.dead || d.delivery.retakes > 0) {
			d.does(n, "writes that it will look into the queue of "+workerNames[to], peeks, func(s *delivery, me *engine) {
				if !w.dead {
					s.retakes--
				}
				s.ledger.act, s.ledger.to, me.to = peeking, to, to
			})
		}
		if w.dead && w.queue[0].seq == 0 {
			d.does(n, "lets go of "+workerNames[to], turning, func(s *delivery, me *engine) { s.workers[to].gone = true })
		}
	}
	if d.delivery.upgrades > 0 && d.keeper {
		for m := range uint8(tables) {
			if d.engines[m].at == absent && (d.noHolder || !d.holds(m)) {
				d.does(n, "stops after its message, gives "+engineNames[m]+" what is in its hands, and says YOURS", suspended,
					func(s *delivery, me *engine) {
						s.upgrades--
						me.other = m + 1
						s.engines[m] = engine{at: receiving, other: n + 1}
						for c := range uint8(conns) {
							if s.ledger.hands.has(c) {
								s.engines[m].table[c] = 1
							}
						}
					})
				return
			}
		}
	}
}

// intend writes the journal of a message.
func (d deliveryStep) intend(c, to uint8) func(*delivery, *engine) {
	return func(s *delivery, me *engine) {
		me.conn, me.to, me.seq = c, to, s.ledger.sent[to]+1
		if d.slip != sendsUnwritten {
			s.ledger.act, s.ledger.conn, s.ledger.to, s.ledger.seq = sending, c, to, me.seq
		}
	}
}

func (d deliveryStep) handOver(n uint8) {
	e := d.engines[n]
	switch e.at {
	case accepts:
		c, ok := d.backlog.first()
		if !ok {
			d.does(n, "finds nothing to accept", turning, func(s *delivery, me *engine) { s.ledger.act = idle })
			return
		}
		d.does(n, fmt.Sprintf("accepts connection %d", c+1), accepted, func(s *delivery, me *engine) {
			s.backlog = s.backlog.without(c)
			me.conn, me.table[c] = c, 1
		})
	case accepted:
		d.does(n, "writes down what it has accepted", noted, func(s *delivery, me *engine) {
			s.ledger.act, s.ledger.hands = idle, s.ledger.hands.with(e.conn)
		})
	case noted:
		if d.workers[e.to].queue[rooms-1].seq != 0 {
			d.does(n, "finds no room", turning, nil)
			return
		}
		d.does(n, "writes that it will send it", sends, d.intend(e.conn, e.to))
	case sends:
		d.does(n, fmt.Sprintf("sends connection %d", e.conn+1), sent, func(s *delivery, me *engine) {
			w := &s.workers[e.to]
			last := w.taken
			for i := range w.queue {
				if w.queue[i].seq != 0 {
					last = w.queue[i].seq
				}
			}
			s.badSeq = s.badSeq || max(last, w.got.seq) >= e.seq
			for i := range w.queue {
				if w.queue[i].seq == 0 {
					w.queue[i] = message{e.seq, e.conn}
					break
				}
			}
		})
	case sent:
		// In either order.
		d.does(n, "closes its own descriptor", shut, func(s *delivery, me *engine) { me.table[e.conn] = 0 })
		d.does(n, "clears the journal", shut, func(s *delivery, me *engine) { s.delivered(e) })
	case shut:
		if e.table[e.conn] > 0 {
			d.does(n, "closes its own descriptor", turning, func(s *delivery, me *engine) { me.table[e.conn] = 0 })
			return
		}
		d.does(n, "clears the journal", turning, func(s *delivery, me *engine) { s.delivered(e) })
	}
}

// delivered writes down that the message of e is sent.
func (s *delivery) delivered(e engine) {
	s.ledger.act, s.ledger.conn, s.ledger.to, s.ledger.seq = idle, 0, 0, 0
	s.ledger.hands = s.ledger.hands.without(e.conn)
	s.ledger.sent[e.to] = e.seq
}

// takeBack empties a queue message by message: it looks first, since what does not fit would be lost.
func (d deliveryStep) takeBack(n uint8) {
	e := d.engines[n]
	queue := d.workers[e.to].queue
	rest := func(s *delivery) { s.ledger.act, s.ledger.conn, s.ledger.to, s.ledger.seq = idle, 0, 0, 0 }
	switch e.at {
	case peeks:
		if queue[0].seq == 0 {
			d.does(n, "finds the queue empty", turning, func(s *delivery, me *engine) { rest(s) })
			return
		}
		d.does(n, fmt.Sprintf("peeks at connection %d", queue[0].conn+1), peeked, func(s *delivery, me *engine) {
			me.conn, me.seq = queue[0].conn, queue[0].seq
			me.table[me.conn]++
		})
	case peeked:
		d.does(n, "writes what it has peeked at", retakes, func(s *delivery, me *engine) {
			s.ledger.act, s.ledger.conn, s.ledger.seq = retaking, e.conn, e.seq
		})
	case retakes:
		if queue[0].seq == 0 {
			d.does(n, "finds that the worker was faster, and closes its duplicate", turning, func(s *delivery, me *engine) {
				me.table[e.conn]--
				rest(s)
			})
			return
		}
		d.does(n, fmt.Sprintf("receives connection %d from the queue", queue[0].conn+1), retaken, func(s *delivery, me *engine) {
			s.workers[e.to].queue = [rooms]message{queue[1]}
			me.table[queue[0].conn]++
			me.second = queue[0].conn != e.conn
			me.next.conn = queue[0].conn
		})
	case retaken:
		d.does(n, "writes it down, and closes the other duplicate", turning, func(s *delivery, me *engine) {
			me.table[e.conn]--
			rest(s)
			s.ledger.hands = s.ledger.hands.with(me.next.conn)
		})
	}
}
