package model

// What the keeper does within custody, and what is said to it.

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
