package storetest

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/registry"
)

// revisions reads events to their end.
func (b *trial) revisions(from registry.Revision) (revs []registry.Revision, err error) {
	for c, err := range b.s.Events(b.t.Context(), from) {
		if err != nil {
			return revs, err
		}
		revs = append(revs, c.Revision)
	}
	return revs, nil
}

func span(first, last registry.Revision) (revs []registry.Revision) {
	for ; first <= last; first++ {
		revs = append(revs, first)
	}
	return revs
}

// wantEvents expects the changes from to to, or none.
func (b *trial) wantEvents(from, to registry.Revision) {
	b.t.Helper()
	got, err := b.revisions(from)
	if err != nil {
		b.t.Errorf("events from %d: %v", from, err)
	}
	if diff := cmp.Diff(span(max(from, 1), to), got); diff != "" {
		b.t.Errorf("events from %d (-want +got):\n%s", from, diff)
	}
}

func (b *trial) wantCompacted(from, oldest registry.Revision) {
	b.t.Helper()
	got, err := b.revisions(from)
	var compacted *registry.CompactedError
	if !errors.As(err, &compacted) || *compacted != (registry.CompactedError{Wanted: from, Oldest: oldest}) {
		b.t.Errorf("events from %d: %v, want that they are kept from %d on", from, err, oldest)
	}
	if len(got) > 0 {
		b.t.Errorf("events from %d, which is compacted, has %v", from, got)
	}
	if st := b.load(); st.Oldest != oldest {
		b.t.Errorf("the state says that events are kept from %d on, want %d", st.Oldest, oldest)
	}
}

func testEvents(t *testing.T, b *trial) {
	b.wantEvents(1, 0)
	for n := range 5 {
		b.commit(Full(n), put(reservation(n))) // every other one has no event, and its revision is not missing for that
	}
	for from := registry.Revision(0); from <= 12; from++ {
		b.wantEvents(from, 10)
	}
	for c, err := range b.s.Events(t.Context(), 3) {
		if err != nil || c.Revision != 3 {
			t.Errorf("first is revision %d (%v), want 3", c.Revision, err)
		}
		break
	}
	b.reopen()
	b.wantEvents(4, 10)
}

// Changes that are large, as where a lease with many reservations ends.
func testLargeEvents(t *testing.T, b *trial) {
	for n := range 12 {
		c := registry.Change{Time: time.Unix(int64(n), 0).UTC()}
		for i := range 1000 {
			r := reservation(i)
			r.Labels = map[string]string{"padding": strings.Repeat("x", 200)}
			c.Events = append(c.Events, registry.Event{Type: registry.EventReleased, Reservation: r, Caller: registry.Self})
		}
		b.commit(c, registry.Change{})
	}
	b.wantEvents(1, 24)
}

func testEventsAsOfTheCall(t *testing.T, b *trial) {
	b.commit(put(reservation(1)), put(reservation(2)))
	early, late := b.s.Events(t.Context(), 1), b.s.Events(t.Context(), 3)
	b.commit(put(reservation(3)))
	n := registry.Revision(0)
	for c, err := range early {
		if n++; err != nil || c.Revision != n {
			t.Errorf("revision %d (%v), want %d", c.Revision, err, n)
		}
		b.commit(put(reservation(4))) // whoever reads holds up nobody, not even itself
	}
	if n != 2 {
		t.Errorf("%d changes, want the 2 there were", n)
	}
	for c, err := range late {
		t.Errorf("revision %d (%v), and there was none at the call", c.Revision, err)
	}
}

func testCompact(t *testing.T, b *trial) {
	for n := range 6 {
		b.commit(Full(n))
	}
	b.commit(registry.Change{Compact: 4})
	b.wantCompacted(3, 4)
	b.wantEvents(4, 7)
	b.commit(registry.Change{Compact: 2}) // less than before
	b.wantCompacted(1, 4)
	b.reopen()
	b.wantCompacted(3, 4)
	b.wantEvents(4, 8)

	// In a batch; then all but itself; then all.
	b.commit(registry.Change{Compact: 6}, registry.Change{Compact: 5}, registry.Change{})
	b.wantCompacted(5, 6)
	b.wantEvents(6, 11)
	b.commit(registry.Change{Compact: 12})
	b.wantCompacted(11, 12)
	b.wantEvents(12, 12)
	b.commit(registry.Change{Compact: 1000})
	b.wantCompacted(13, 14)
	b.wantEvents(14, 13)
	b.reopen()
	b.wantCompacted(13, 14)
	b.commit(Full(20))
	b.wantEvents(14, 14)
}

// A store may put off removing what was compacted. That must not show.
func testCompactMany(t *testing.T, b *trial) {
	const many = 3000
	b.commit(make([]registry.Change, many)...)
	b.commit(registry.Change{Compact: many})
	for n := range 5 {
		b.wantCompacted(many-1, many)
		b.wantEvents(many, registry.Revision(many+1+n))
		b.reopen()
		b.commit(put(reservation(n)))
	}
}

func testCompactWhileReading(t *testing.T, b *trial) {
	const many = 2000
	b.commit(make([]registry.Change, many)...)
	next, ended := registry.Revision(1), error(nil)
	for c, err := range b.s.Events(t.Context(), 1) {
		if err != nil {
			ended = err
			break
		}
		if c.Revision != next {
			t.Fatalf("revision %d, want %d", c.Revision, next)
		}
		if next == 1 {
			b.commit(registry.Change{Compact: many / 2})
			b.commit(registry.Change{})
		}
		next++
	}
	// To have it all is as good as to hear that there is a gap.
	var compacted *registry.CompactedError
	switch {
	case ended == nil && next == many+1:
	case errors.As(ended, &compacted) && compacted.Wanted == next && compacted.Oldest == many/2:
	default:
		t.Errorf("ended before %d: %v", next, ended)
	}
}
