package natrules

import "golang.org/x/sys/unix"

// lookup asks a set. The rule goes on for what is in it, and for a map once for each of its elements.
func (m *machine) lookup(e expression, rest []expression, t thread) error {
	s, isMap := m.sets[cString(e.args[unix.NFTA_LOOKUP_SET])], e.args[unix.NFTA_LOOKUP_DREG] != nil
	sreg := e.register(unix.NFTA_LOOKUP_SREG)
	const inverted = 1 // NFT_LOOKUP_F_INV
	switch {
	case s == nil:
		t.some = true
		return m.run(rest, t)
	case !isMap && e.number(unix.NFTA_LOOKUP_FLAGS)&inverted != 0:
		in, some := t.elements(s, sreg)
		if out, of := otherThan(in); of && !some {
			t.narrow(out, false)
		} else {
			t.some = true
		}
		return m.run(rest, t)
	case !isMap:
		in, some := t.elements(s, sreg)
		if !t.narrow(in, some) {
			return nil
		}
		return m.run(rest, t)
	}
	for _, el := range s.elements {
		if err := m.step(); err != nil {
			return err
		}
		t := t
		if !t.narrow(t.element(s, sreg, el)) {
			continue
		}
		t = t.clone()
		if el.verdict != nil {
			m.verdict(t, *el.verdict)
			continue
		}
		dreg := e.register(unix.NFTA_LOOKUP_DREG)
		// Address and port may come in one piece: each 4 bytes are a register.
		for i := 4; i < len(el.data); i += 4 {
			t.cells[dreg+uint32(i/4)] = cell{field: constant, data: el.data[i:]}
		}
		t.cells[dreg] = cell{field: constant, data: el.data}
		if err := m.run(rest, t); err != nil {
			return err
		}
	}
	return nil
}

// elements is which packets are in a set.
func (t thread) elements(s *set, sreg uint32) (match []class, some bool) {
	for _, el := range s.elements {
		more, not := t.element(s, sreg, el)
		match, some = append(match, more...), some || not
	}
	return match, some
}

// element is which packets an element is for. A key of several fields has each at a register.
func (t thread) element(s *set, sreg uint32, el element) (match []class, some bool) {
	match = everything()
	for at := 0; at < len(el.key) && at < len(el.last); {
		c := t.cells[sreg+uint32(at/4)]
		size := min(len(el.key), len(el.last)) - at
		if s.keyLen > 4 && size > 4 && (c.field != address || !c.v6) {
			size = 4
		}
		size = min(size, 16)
		first, last := el.key[at:at+size], el.last[at:at+size]
		if c.field == port {
			first, last = first[:min(2, size)], last[:min(2, size)]
		}
		in, not := c.within(first, last)
		match, some = both(match, in), some || not
		at += size
	}
	return match, some
}
