package localports

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// A portSet is a set of port numbers, a bit each.
type portSet [1 << 16 / 64]uint64

func (s *portSet) add(port int)    { s[port/64] |= 1 << (port % 64) }
func (s *portSet) remove(port int) { s[port/64] &^= 1 << (port % 64) }
func (s *portSet) empty() bool     { return *s == portSet{} }

func (s *portSet) addRange(first, last int) {
	for p := first; p <= last; p++ {
		s.add(p)
	}
}

func (s *portSet) removeRange(first, last int) {
	for p := first; p <= last; p++ {
		s.remove(p)
	}
}

func (s *portSet) count() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

func (s *portSet) with(o *portSet) *portSet {
	return s.each(o, func(a, b uint64) uint64 { return a | b })
}

func (s *portSet) without(o *portSet) *portSet {
	return s.each(o, func(a, b uint64) uint64 { return a &^ b })
}

func (s *portSet) and(o *portSet) *portSet {
	return s.each(o, func(a, b uint64) uint64 { return a & b })
}

func (s *portSet) each(o *portSet, f func(a, b uint64) uint64) *portSet {
	out := new(portSet)
	for w := range s {
		out[w] = f(s[w], o[w])
	}
	return out
}

// runs yields the ports as runs, first to last, in ascending order.
func (s *portSet) runs(yield func(first, last int) bool) {
	for p := s.next(0, true); p < 1<<16; {
		end := s.next(p, false)
		if !yield(p, end-1) {
			return
		}
		p = s.next(end, true)
	}
}

// next is the first port from p on that is in the set, or that is not; 65536 where there is none.
func (s *portSet) next(p int, in bool) int {
	for p < 1<<16 {
		w := s[p/64]
		if !in {
			w = ^w
		}
		if w >>= p % 64; w != 0 {
			return p + bits.TrailingZeros64(w)
		}
		p = (p/64 + 1) * 64
	}
	return p
}

// hasAny says whether any of the ports first to last is in the set.
func (s *portSet) hasAny(first, last int) bool { return s.next(first, true) <= last }

func appendRun(text []byte, first, last int) []byte {
	if len(text) > 0 {
		text = append(text, ',')
	}
	text = strconv.AppendInt(text, int64(first), 10)
	if last > first {
		text = append(text, '-')
		text = strconv.AppendInt(text, int64(last), 10)
	}
	return text
}

// String spells the set as the kernel does: "22,8000-8009".
func (s *portSet) String() string {
	var text []byte
	for first, last := range s.runs {
		text = appendRun(text, first, last)
	}
	return string(text)
}

// parsePorts reads what String, and the kernel, have written.
func parsePorts(text string) (*portSet, error) {
	s := new(portSet)
	if text == "" {
		return s, nil
	}
	for run := range strings.SplitSeq(text, ",") {
		from, to, more := strings.Cut(run, "-")
		first, err := strconv.ParseUint(from, 10, 16)
		last := first
		if more && err == nil {
			last, err = strconv.ParseUint(to, 10, 16)
		}
		if err == nil && last < first {
			err = errors.New("it goes backwards")
		}
		if err != nil {
			return nil, fmt.Errorf("%.40q is no range of ports: %w", run, err)
		}
		s.addRange(int(first), int(last))
	}
	return s, nil
}
