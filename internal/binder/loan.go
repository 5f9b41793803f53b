package binder

import (
	"slices"
	"time"
)

// A loan is of sockets that are lent together: all of a holding's, or one of a group.
type loan struct {
	count   int         // loans that have not been returned
	drained []uint64    // those of them whose programs want no more, by their turn
	began   uint64      // the turn of the last one
	grace   *time.Timer // runs from the last return until what has queued is dropped; nil: it does not
}

// wants says whether a program has the sockets that takes what arrives.
func (l *loan) wants() bool { return l.count > len(l.drained) }

// loanOf is that of a member of a group, or the only one.
func (h *holding) loanOf(member int) *loan {
	if len(h.lending) == 0 {
		h.lending = make([]loan, max(h.group, 1))
	}
	return &h.lending[member]
}

// lentWith is the sockets that are lent together.
func (h *holding) lentWith(member int) []*socket {
	if h.group == 0 {
		return h.sockets
	}
	return h.sockets[member : member+1]
}

func (h *holding) loans(member int) int {
	if member >= max(h.group, 1) {
		return 0
	}
	return h.loanOf(member).count
}

// choose is whose sockets are lent next: those that wait for a successor, the longest first; then those that nobody has; then those
// that the fewest have, of which the longest lent.
func (h *holding) choose() (best int) {
	rank := func(l *loan) int {
		if l.grace != nil {
			return -1
		}
		return l.count
	}
	for member := range max(h.group, 1) {
		x, y := h.loanOf(member), h.loanOf(best)
		if rank(x) < rank(y) || rank(x) == rank(y) && x.began < y.began {
			best = member
		}
	}
	return best
}

// begin counts a loan.
func (h *holding) begin(member int) {
	l := h.loanOf(member)
	l.stop()
	h.turn++
	l.count, l.began = l.count+1, h.turn
	h.lent++
}

// beginAgain counts a loan of before the Binder was made.
func (h *holding) beginAgain(member int, turn uint64) {
	l := h.loanOf(member)
	l.stop()
	h.turn = max(h.turn, turn)
	l.count, l.began = l.count+1, max(l.began, turn)
	h.lent++
}

// end counts a return, and says whether it was the last one.
func (h *holding) end(member int, turn uint64) (last bool) {
	l := h.loanOf(member)
	l.drain(turn, false)
	l.count--
	h.lent--
	return l.count == 0
}

// drain notes that a program wants no more, or wants it again after all.
func (l *loan) drain(turn uint64, on bool) {
	l.drained = slices.DeleteFunc(l.drained, func(t uint64) bool { return t == turn })
	if on {
		l.drained = append(l.drained, turn)
	}
}

// keep calls over when the grace has passed, unless begin or stop came before.
func (h *holding) keep(member int, grace time.Duration, over func()) {
	l := h.loanOf(member)
	l.stop()
	l.grace = time.AfterFunc(grace, over)
}

// graceEnded says whether a grace that is over is the one that began with the last return: the timer may have fired while somebody
// else was stopping it.
func (h *holding) graceEnded(member int) bool {
	l := h.loanOf(member)
	if l.grace == nil || l.count > 0 {
		return false
	}
	l.grace = nil
	return true
}

func (l *loan) stop() {
	if l.grace != nil {
		l.grace.Stop()
		l.grace = nil
	}
}

// waits says whether sockets are kept for somebody to come.
func (h *holding) waits() bool {
	for i := range h.lending {
		if h.lending[i].grace != nil {
			return true
		}
	}
	return false
}

// forgo ends that.
func (h *holding) forgo() {
	for i := range h.lending {
		h.lending[i].stop()
	}
}
