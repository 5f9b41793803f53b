package storetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/portd/portd/internal/registry"
)

// A Model is what should be in a store. The zero Model is of a new one.
type Model struct {
	Revision registry.Revision
	records  map[registry.Key]registry.Record
	changes  []registry.Change // changes[i] is of revision i+1
	oldest   registry.Revision // 0: the first
}

// Apply does what Commit of the changes does to a store.
func (m *Model) Apply(changes ...registry.Change) {
	if m.records == nil {
		m.records = map[registry.Key]registry.Record{}
	}
	for _, c := range changes {
		for _, r := range c.Put {
			m.records[r.Key()] = r
		}
		for _, k := range c.Delete {
			delete(m.records, k)
		}
		m.Revision = c.Revision
		m.changes = append(m.changes, registry.Change{Revision: c.Revision, Time: c.Time, Events: c.Events})
		m.oldest = max(m.oldest, min(c.Compact, c.Revision+1))
	}
}

// Next makes up a batch of changes on top of m. It depends on rnd and m alone.
func (m *Model) Next(rnd *rand.Rand) []registry.Change {
	changes := make([]registry.Change, 1+rnd.IntN(6))
	for i := range changes {
		c := &changes[i]
		c.Revision = m.Revision + 1 + registry.Revision(i)
		c.Time = time.Unix(int64(c.Revision), rnd.Int64N(1e9)).UTC()
		for range rnd.IntN(4) {
			r := reservation(rnd.IntN(200)) // few enough to meet them again
			r.Revision = c.Revision
			r.Labels = map[string]string{"team": fmt.Sprint(rnd.Int())}
			for range rnd.IntN(4) {
				r.Assigned = append(r.Assigned, registry.Assigned{Endpoint: registry.Endpoint{
					Netns: registry.HostNetns, Proto: registry.TCP, Addr: registry.AnyAddr, First: 8080, Last: 8080,
				}})
			}
			c.Put = append(c.Put, r)
			c.Events = append(c.Events, registry.Event{Type: registry.EventReserved, Reservation: r, Caller: r.Owner})
		}
		for range rnd.IntN(3) {
			c.Delete = append(c.Delete, reservation(rnd.IntN(200)).Key())
		}
		switch rnd.IntN(8) {
		case 0:
			c.Put = append(c.Put, service(rnd.IntN(20)))
		case 1:
			c.Delete = append(c.Delete, service(rnd.IntN(20)).Key())
		case 2:
			// Larger than a page, and often in place of another.
			e := &registry.Edition{Slot: registry.CurrentSlot, Origin: registry.Imported, Blob: strings.Repeat(fmt.Sprint(rnd.Int()), 300)}
			if rnd.IntN(2) == 0 {
				e.Slot = registry.PreviousSlot
			}
			c.Put = append(c.Put, e)
		}
		if rnd.IntN(20) == 0 {
			c.Compact = registry.Revision(rnd.Int64N(int64(c.Revision) + 2))
		}
	}
	return changes
}

// Check compares all that s says with m. The order of records is open.
func (m *Model) Check(t testing.TB, s registry.Store) {
	t.Helper()
	got, err := s.Load(context.Background())
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	gotRequests, err := s.Requests(context.Background())
	if err != nil {
		t.Fatalf("requests: %v", err)
	}
	var wantRequests []*registry.Request
	want := &registry.State{StoreID: got.StoreID, Schema: got.Schema, Revision: m.Revision, Oldest: max(m.oldest, 1)}
	for _, r := range m.records {
		switch r := r.(type) {
		case *registry.Reservation:
			want.Reservations = append(want.Reservations, r)
		case *registry.Lease:
			want.Leases = append(want.Leases, r)
		case *registry.Request:
			wantRequests = append(wantRequests, r)
		case *registry.Boot:
			want.Boot = r
		case *registry.Edition:
			want.Editions = append(want.Editions, r)
		case *registry.OwnService:
			want.Services = append(want.Services, r)
		case *registry.Former:
			want.Formers = append(want.Formers, r)
		case *registry.Namespace:
			want.Namespaces = append(want.Namespaces, r)
		}
	}
	for _, st := range []*registry.State{want, got} {
		byKey(st.Reservations)
		byKey(st.Leases)
		byKey(st.Editions)
		byKey(st.Services)
		byKey(st.Formers)
		byKey(st.Namespaces)
	}
	if diff := diff(want, got); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	byKey(gotRequests)
	byKey(wantRequests)
	if diff := diff(wantRequests, gotRequests); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}

	var events []registry.Change
	for c, err := range s.Events(context.Background(), want.Oldest) {
		if err != nil {
			t.Errorf("events from %d: %v", want.Oldest, err)
			break
		}
		events = append(events, c)
	}
	if diff := diff(m.changes[want.Oldest-1:], events); diff != "" {
		t.Errorf("events from %d (-want +got):\n%s", want.Oldest, diff)
	}
	if want.Oldest == 1 {
		return
	}
	for _, err := range s.Events(context.Background(), want.Oldest-1) {
		if !errors.Is(err, registry.ErrCompacted) {
			t.Errorf("events from %d, which is before the oldest: %v", want.Oldest-1, err)
		}
	}
}

// diff makes no difference between no list and an empty one.
func diff[T any](want, got T) string {
	if reflect.DeepEqual(want, got) {
		return "" // the usual case, and go-cmp takes a hundred times as long to find out
	}
	return gocmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}))
}

func byKey[R registry.Record](rs []R) {
	slices.SortFunc(rs, func(a, b R) int { return cmp.Compare(a.Key().ID, b.Key().ID) })
}
