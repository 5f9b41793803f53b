// Package storetest is the tests that every registry.Store passes: what the interface's words mean.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

// Run tests stores. Each call of place is for a new one, and returns the function that opens it: the first time, and again
// each time that it was closed. Both end t where they fail.
func Run(t *testing.T, place func(t *testing.T) (open func() registry.Store)) {
	for _, tt := range []struct {
		name string
		test func(*testing.T, *trial)
	}{
		{"New", testNew},
		{"EveryField", testEveryField},
		{"Batch", testBatch},
		{"NothingToCommit", testNothingToCommit},
		{"Conflict", testConflict},
		{"ConcurrentCommits", testConcurrentCommits},
		{"WrongRevision", testWrongRevision},
		{"Unstorable", testUnstorable},
		{"DeleteUnknown", testDeleteUnknown},
		{"Editions", testEditions},
		{"Events", testEvents},
		{"LargeEvents", testLargeEvents},
		{"EventsAsOfTheCall", testEventsAsOfTheCall},
		{"Compact", testCompact},
		{"CompactMany", testCompactMany},
		{"CompactWhileReading", testCompactWhileReading},
		{"Many", testMany},
		{"Cancelled", testCancelled},
		{"ConcurrentReaders", testConcurrentReaders},
		{"RandomHistory", testRandomHistory},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &trial{t: t, open: place(t)}
			b.s = b.open()
			t.Cleanup(func() {
				b.model.Check(t, b.s)
				b.close()
			})
			tt.test(t, b)
		})
	}
	t.Run("Distinct", func(t *testing.T) {
		ids := map[string]bool{}
		for range 3 {
			b := &trial{t: t, open: place(t)}
			b.s = b.open()
			ids[b.load().StoreID] = true
			b.close()
		}
		if len(ids) != 3 {
			t.Errorf("3 new stores have the ids %v", ids)
		}
	})
}

// A trial has a store, and a model of what should be in it.
type trial struct {
	t     *testing.T
	open  func() registry.Store
	s     registry.Store
	model Model
}

func (b *trial) close() {
	b.t.Helper()
	if err := b.s.Close(); err != nil {
		b.t.Errorf("close: %v", err)
	}
}

func (b *trial) reopen() {
	b.t.Helper()
	b.close()
	b.s = b.open()
}

func (b *trial) load() *registry.State {
	b.t.Helper()
	st, err := b.s.Load(b.t.Context())
	if err != nil {
		b.t.Fatalf("load: %v", err)
	}
	return st
}

// commit numbers the changes, as the next ones, and expects them to be committed as one batch.
func (b *trial) commit(changes ...registry.Change) {
	b.t.Helper()
	base := b.model.Revision
	for i := range changes {
		changes[i].Revision = base + 1 + registry.Revision(i)
	}
	if err := b.s.Commit(b.t.Context(), base, changes); err != nil {
		b.t.Fatalf("commit on %d: %v", base, err)
	}
	b.model.Apply(changes...)
}

// refused expects a batch to fail, which the Check at the end of the test finds to be without a trace.
func (b *trial) refused(ctx context.Context, base registry.Revision, want error, changes ...registry.Change) {
	b.t.Helper()
	if err := b.s.Commit(ctx, base, changes); err == nil || want != nil && !errors.Is(err, want) {
		b.t.Errorf("commit on %d: %v, want an error %v", base, err, want)
	}
	b.model.Check(b.t, b.s)
}

func reservation(n int) *registry.Reservation {
	return &registry.Reservation{ID: fmt.Sprintf("rsv_%06d", n), Name: fmt.Sprintf("web-%d", n), Owner: "uid:1000"}
}

func service(n int) *registry.OwnService {
	port := uint16(8000 + n)
	return &registry.OwnService{By: "uid:0", Entry: ianadb.Entry{
		Name: "app", Port: fmt.Sprint(port), First: port, Last: port, Protocol: ianadb.TCP,
	}}
}

func put(records ...registry.Record) registry.Change { return registry.Change{Put: records} }

func testNew(t *testing.T, b *trial) {
	first := b.load()
	if first.StoreID == "" || first.Schema == 0 {
		t.Errorf("store id %q, schema %d", first.StoreID, first.Schema)
	}
	if diff := cmp.Diff(&registry.State{StoreID: first.StoreID, Schema: first.Schema, Oldest: 1}, first); diff != "" {
		t.Errorf("a new store (-want +got):\n%s", diff)
	}
	b.reopen()
	if diff := cmp.Diff(first, b.load()); diff != "" {
		t.Errorf("opened again (-before +after):\n%s", diff)
	}
	b.commit(put(reservation(1)))
	b.reopen()
	if got := b.load().StoreID; got != first.StoreID {
		t.Errorf("store id was %q and is %q", first.StoreID, got)
	}
}

func testEveryField(t *testing.T, b *trial) {
	b.commit(Full(1))
	b.model.Check(t, b.s)
	b.reopen()
	b.model.Check(t, b.s)
	// As few fields as there can be, in new records and then in those that had all.
	bare := func(id string) registry.Change {
		return put(
			&registry.Reservation{ID: id},
			&registry.Lease{ID: id, Spec: registry.LeaseSpec{Kind: registry.SessionLease}},
			&registry.Request{ID: id},
			&registry.Boot{},
			&registry.Edition{Slot: id, Origin: registry.Embedded},
			&registry.OwnService{Entry: ianadb.Entry{Name: id}},
		)
	}
	b.commit(bare("bare"))
	b.reopen()
	b.model.Check(t, b.s)
	full := Full(2)
	full.Put[0].(*registry.Reservation).ID = "bare"
	full.Put[1].(*registry.Lease).ID = "bare"
	full.Put[4].(*registry.Edition).Slot = "bare"
	b.commit(full)
	b.commit(bare("bare"))
	b.reopen()
}

func testBatch(t *testing.T, b *trial) {
	renamed := reservation(1)
	renamed.Name = "renamed"
	b.commit(
		put(reservation(1), reservation(2)),
		registry.Change{Put: []registry.Record{renamed}, Delete: []registry.Key{reservation(2).Key()}},
		put(reservation(3)),
		registry.Change{Delete: []registry.Key{reservation(3).Key()}},
		put(reservation(3)),
	)
	b.model.Check(t, b.s)
	b.reopen()
	b.model.Check(t, b.s)
	b.commit(registry.Change{Delete: []registry.Key{renamed.Key(), reservation(3).Key()}})
	b.reopen()
}

func testNothingToCommit(t *testing.T, b *trial) {
	b.commit(put(reservation(1)))
	b.commit()
	b.refused(t.Context(), 0, registry.ErrConflict)
}

func testConflict(t *testing.T, b *trial) {
	b.refused(t.Context(), 1, registry.ErrConflict, registry.Change{Revision: 2})
	b.commit(put(reservation(1)), put(reservation(2)))
	for _, base := range []registry.Revision{0, 1, 3} {
		c := put(reservation(int(base) + 10))
		c.Revision = base + 1
		b.refused(t.Context(), base, registry.ErrConflict, c)
	}
	b.commit(put(reservation(3)))
}

func testConcurrentCommits(t *testing.T, b *trial) {
	for range 10 {
		base := b.model.Revision
		var wg sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			wg.Go(func() {
				c := put(reservation(i))
				c.Revision = base + 1
				errs[i] = b.s.Commit(t.Context(), base, []registry.Change{c})
			})
		}
		wg.Wait()
		won := 0
		for i, err := range errs {
			switch {
			case err == nil:
				won++
				c := put(reservation(i))
				c.Revision = base + 1
				b.model.Apply(c)
			case !errors.Is(err, registry.ErrConflict):
				t.Errorf("commit on %d: %v", base, err)
			}
		}
		if won != 1 {
			t.Fatalf("%d of %d commits on revision %d succeeded", won, len(errs), base)
		}
	}
}

func testWrongRevision(t *testing.T, b *trial) {
	b.commit(put(reservation(1)))
	for _, revisions := range [][]registry.Revision{{1}, {3}, {2, 2}, {2, 4}, {2, 3, 5}, {3, 2}} {
		var changes []registry.Change
		for i, r := range revisions {
			c := put(reservation(10 + i))
			c.Revision = r
			changes = append(changes, c)
		}
		b.refused(t.Context(), 1, nil, changes...)
	}
}

// A batch that cannot be written as a whole is not written in part.
func testUnstorable(t *testing.T, b *trial) {
	b.commit(put(reservation(1)))
	for _, bad := range []registry.Change{
		{Put: []registry.Record{alien{}}},
		{Delete: []registry.Key{alien{}.Key()}},
		{Put: []registry.Record{&registry.Reservation{}}}, // no id
		{Put: []registry.Record{&registry.Lease{ID: "lse_1", Spec: registry.LeaseSpec{Kind: 255}}}},
		{Put: []registry.Record{&registry.Edition{Origin: registry.Imported}}}, // no slot
		{Put: []registry.Record{&registry.Edition{Slot: "current", Origin: 255}}},
		{Events: []registry.Event{{Type: 255}}},
	} {
		good := put(reservation(2))
		good.Revision, bad.Revision = 2, 3
		b.refused(t.Context(), 1, nil, good, bad)
	}
	b.commit(put(reservation(2)))
}

// alien is a record of a kind that no store has heard of.
type alien struct{}

func (alien) Key() registry.Key { return registry.Key{Kind: "alien", ID: "1"} }

func testDeleteUnknown(t *testing.T, b *trial) {
	b.commit(put(reservation(1)))
	b.commit(registry.Change{Delete: []registry.Key{
		reservation(2).Key(),
		(&registry.Lease{ID: "lse_none"}).Key(),
		(&registry.Request{Caller: "uid:0", Method: "Reserve", ID: "none"}).Key(),
		(&registry.Boot{}).Key(),
		(&registry.Edition{Slot: registry.PreviousSlot}).Key(),
		service(1).Key(),
	}})
	if got := b.load().Revision; got != 2 {
		t.Errorf("revision %d after deleting what is not there, want 2", got)
	}
}

// A real edition has more than a megabyte, of any bytes.
func testEditions(t *testing.T, b *trial) {
	edition := func(slot string, first byte) *registry.Edition {
		blob := bytes.Repeat([]byte{first, 0xff, 0, 0x80}, 350_000)
		return &registry.Edition{Slot: slot, Origin: registry.Imported, Date: "2026-08-17", Blob: string(blob)}
	}
	b.commit(put(edition(registry.CurrentSlot, 1)))
	b.commit(put(edition(registry.CurrentSlot, 2), edition(registry.PreviousSlot, 1)), put(service(1), service(2)))
	b.model.Check(t, b.s)
	b.reopen()
	b.model.Check(t, b.s)
	b.commit(put(edition(registry.CurrentSlot, 1), edition(registry.PreviousSlot, 2)), put(reservation(1)))
	b.commit(registry.Change{Delete: []registry.Key{edition(registry.PreviousSlot, 0).Key(), service(1).Key()}})
	b.reopen()
}

func testMany(t *testing.T, b *trial) {
	const batches, size = 10, 1000
	for i := range batches {
		c := registry.Change{}
		for j := range size {
			c.Put = append(c.Put, reservation(i*size+j))
		}
		b.commit(c)
	}
	b.reopen()
	b.model.Check(t, b.s)
	c := registry.Change{}
	for i := 0; i < batches*size; i += 2 {
		c.Delete = append(c.Delete, reservation(i).Key())
	}
	b.commit(c)
	b.reopen()
}

func testCancelled(t *testing.T, b *trial) {
	for n := range 10 {
		b.commit(Full(n))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	read := 0
	for _, err := range b.s.Events(ctx, 1) {
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("events: %v", err)
			}
			break
		}
		if read++; read == 2 {
			cancel()
		}
	}
	if read != 2 {
		t.Errorf("%d changes after the context was cancelled at the second", read)
	}
	b.refused(ctx, 10, context.Canceled, registry.Change{Revision: 11})
	if _, err := b.s.Load(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("load: %v", err)
	}
	b.commit(put(reservation(1)))
}

// Who reads while others commit sees the state between two commits, and never a part of one.
func testConcurrentReaders(t *testing.T, b *trial) {
	const changes, readers = 100, 3
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			for ctx.Err() == nil {
				st, err := b.s.Load(t.Context())
				switch {
				case err != nil:
					t.Errorf("load: %v", err)
					return
				case st.Revision == 0:
					continue
				case st.Revision%2 != 0 || len(st.Reservations) != 1 || st.Reservations[0].Revision != st.Revision:
					t.Errorf("at revision %d there are %v", st.Revision, st.Reservations)
					return
				}
				next := registry.Revision(1)
				for c, err := range b.s.Events(t.Context(), next) {
					if err != nil || c.Revision != next {
						t.Errorf("revision %d (%v), want %d", c.Revision, err, next)
						return
					}
					next++
				}
				if next <= st.Revision {
					t.Errorf("events end before %d, and the state was at %d already", next, st.Revision)
					return
				}
			}
		})
	}
	for n := 2; n <= changes; n += 2 {
		r := reservation(n)
		r.Revision = registry.Revision(n)
		b.commit(put(reservation(n-1)), registry.Change{
			Put:    []registry.Record{r},
			Delete: []registry.Key{reservation(n - 1).Key(), reservation(n - 2).Key()},
		})
	}
	cancel()
	wg.Wait()
}

func testRandomHistory(t *testing.T, b *trial) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 60 {
		changes := b.model.Next(rnd)
		if err := b.s.Commit(t.Context(), b.model.Revision, changes); err != nil {
			t.Fatalf("commit on %d: %v", b.model.Revision, err)
		}
		b.model.Apply(changes...)
		switch rnd.IntN(8) {
		case 0:
			b.reopen()
		case 1:
			b.model.Check(t, b.s)
		}
	}
}
