package registry

import "math/bits"

// A portSet is a set of port numbers, a bit each: small enough to copy for every choice, and counted in a microsecond.
type portSet [1 << 16 / 64]uint64

func (s *portSet) has(port uint16) bool { return s[port/64]>>(port%64)&1 != 0 }
func (s *portSet) add(port uint16)      { s[port/64] |= 1 << (port % 64) }
func (s *portSet) remove(port uint16)   { s[port/64] &^= 1 << (port % 64) }

func (s *portSet) addRange(r PortRange) {
	for w := int(r.First) / 64; w <= int(r.Last)/64; w++ {
		s[w] |= r.inWord(w)
	}
}

func (r PortRange) inWord(w int) uint64 {
	from, to := max(int(r.First)-w*64, 0), min(int(r.Last)-w*64, 63)
	return ^uint64(0) << from & (^uint64(0) >> (63 - to))
}

func (s *portSet) addAll(o *portSet) {
	for w := range s {
		s[w] |= o[w]
	}
}

func (s *portSet) removeAll(o *portSet) {
	for w := range s {
		s[w] &^= o[w]
	}
}

func (s *portSet) keepAll(o *portSet) {
	for w := range s {
		s[w] &= o[w]
	}
}

func (s *portSet) count() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

func (s *portSet) empty() bool { return *s == portSet{} }

// from is the first port from p on that lies in s, or, where is is false, that does not; 65536 where there is none.
func (s *portSet) from(p int, is bool) int {
	var flip uint64
	if !is {
		flip = ^flip
	}
	for w, skip := p/64, p%64; w < len(s); w, skip = w+1, 0 {
		if rest := (s[w] ^ flip) >> skip << skip; rest != 0 {
			return w*64 + bits.TrailingZeros64(rest)
		}
	}
	return 1 << 16
}

// last is the last port of s, 0 where there is none.
func (s *portSet) last() uint16 {
	for w := len(s) - 1; w >= 0; w-- {
		if s[w] != 0 {
			return uint16(w*64 + bits.Len64(s[w]) - 1)
		}
	}
	return 0
}

// ranges are the ports of s, ascending, each range as long as it can be.
func (s *portSet) ranges() (all []PortRange) {
	for p := s.from(0, true); p < 1<<16; {
		end := s.from(p, false)
		all = append(all, PortRange{uint16(p), uint16(end - 1)})
		p = s.from(end, true)
	}
	return all
}

// all yields the ports in ascending order. The set may change meanwhile.
func (s *portSet) all(yield func(uint16) bool) {
	for w := range s {
		for rest := s[w]; rest != 0; rest &= rest - 1 {
			if !yield(uint16(w*64 + bits.TrailingZeros64(rest))) {
				return
			}
		}
	}
}

// nth is the port that has n others before it; there must be more than n.
func (s *portSet) nth(n int) uint16 {
	w := 0
	for c := bits.OnesCount64(s[0]); n >= c; c = bits.OnesCount64(s[w]) {
		n -= c
		w++
	}
	rest := s[w]
	for range n {
		rest &= rest - 1
	}
	return uint16(w*64 + bits.TrailingZeros64(rest))
}

// runs makes s the ports at which runs of n begin that lie in s wholly. It doubles what it knows: where runs of k begin
// at p and at p+k, one of 2k begins at p.
func (s *portSet) runs(n int) {
	for have := 1; have < n; {
		shift := min(have, n-have)
		word, bit := shift/64, shift%64
		at := func(w int) uint64 {
			if w < len(s) {
				return s[w]
			}
			return 0
		}
		for w := range s { // what it reads lies ahead of what it has written
			s[w] &= at(w+word)>>bit | at(w+word+1)<<(64-bit)
		}
		have += shift
	}
}

// longest is the length of the longest run.
func (s *portSet) longest() (n int) {
	run, before := 0, -2
	for port := range s.all {
		if int(port) != before+1 {
			run = 0
		}
		run, before = run+1, int(port)
		n = max(n, run)
	}
	return n
}
