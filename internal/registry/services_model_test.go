package registry_test

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

// Whatever is done to the service registry, in any order and with a store that fails now and then: what answers is what
// the store has, and what a portd that starts then would answer.
func TestServicesAsStored(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	built := edition(t, "2026-01-01", small())
	store, pegs := newStandIns()
	r, stop := start(t, store, pegs, registry.Config{Services: built})
	full := errors.New("disk full")
	name := func() string { return string(rune('a' + rnd.IntN(3))) }
	ports := func(e *ianadb.Entry) {
		e.First = uint16(8101 + rnd.IntN(4))
		e.Last = e.First + uint16(rnd.IntN(2))
	}
	proto := func() ianadb.Protocol { return ianadb.TCP + ianadb.Protocol(rnd.IntN(2)) }
	for step := range long(500, 150) {
		var fail error
		if rnd.IntN(10) == 0 {
			fail = full
		}
		store.mu.Lock()
		store.fail = fail
		store.mu.Unlock()
		var what string
		var err error
		override := rnd.IntN(2) == 0
		sel := registry.ServiceSelector{Name: name(), Protocol: ianadb.Protocol(rnd.IntN(3))}
		switch rnd.IntN(12) {
		case 0:
			entries := later()
			entries[0].Description = name()
			opt := registry.ImportOptions{Force: true, ETag: name(), Date: []string{"", "2026-02-02", "2026-03-03"}[rnd.IntN(3)]}
			what = fmt.Sprintf("import %s %+v", entries[0].Description, opt)
			_, err = r.ImportServices(t.Context(), root, file(t, entries), opt)
		case 1:
			opt := registry.UndoOptions{Embedded: rnd.IntN(3) == 0}
			what = fmt.Sprintf("undo %+v", opt)
			_, err = r.UndoImport(t.Context(), root, opt)
		case 2, 3:
			what = fmt.Sprintf("remove %v", sel)
			_, err = r.RemoveServices(t.Context(), root, sel)
		case 4, 5, 6:
			var to ianadb.Entry
			ports(&to)
			to.Name, to.Notes = name(), name()
			which := rnd.IntN(3)
			what = fmt.Sprintf("edit %v to %+v (%d)", sel, to, which)
			_, _, err = r.EditServices(t.Context(), root, sel, func(e *ianadb.Entry) {
				switch which {
				case 0:
					e.First, e.Last = to.First, to.Last
				case 1:
					e.Name = to.Name
				case 2:
					e.Notes = to.Notes
				}
			}, override)
		default:
			var entries []ianadb.Entry
			for range 1 + rnd.IntN(2) {
				e := ianadb.Entry{Name: name(), Protocol: proto(), Notes: name()}
				ports(&e)
				entries = append(entries, e)
			}
			what = fmt.Sprintf("add %+v", entries)
			_, _, err = r.AddServices(t.Context(), root, entries, override)
		}
		if err != nil && !slices.ContainsFunc([]error{full, registry.ErrTaken, registry.ErrNotFound}, func(e error) bool { return errors.Is(err, e) }) {
			t.Fatalf("step %d, %s: %v", step, what, err)
		}
		answers := asStored(r.Services())
		has := &registry.State{Editions: slices.Clone(store.state.Editions), Services: slices.Clone(store.state.Services)}
		slices.SortFunc(has.Editions, func(a, b *registry.Edition) int { return cmp.Compare(a.Slot, b.Slot) })
		slices.SortFunc(has.Services, byKey)
		if diff := gocmp.Diff(has, answers, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("step %d, after %s, %v (-stored +answers):\n%s", step, what, err, diff)
		}
		if n := r.Services().Directory.Own; n != nil && n.Len() != len(has.Services) || n == nil && len(has.Services) > 0 {
			t.Fatalf("step %d, after %s: %d are stored, and others answer", step, what, len(has.Services))
		}
	}
	stop()
	store.fail = nil
	before, order := asStored(r.Services()), entriesOf(r.Services().Directory.Own)
	again, _ := start(t, store, pegs, registry.Config{Services: built})
	if diff := gocmp.Diff(before, asStored(again.Services()), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("after a start (-before +after):\n%s", diff)
	}
	if diff := gocmp.Diff(order, entriesOf(again.Services().Directory.Own)); diff != "" {
		t.Errorf("the order of answers after a start (-before +after):\n%s", diff)
	}
}

func entriesOf(db *ianadb.DB) (all []ianadb.Entry) {
	if db == nil {
		return nil
	}
	for r := range db.All() {
		all = append(all, r.Entry())
	}
	return all
}

// asStored is s as a store has it.
func asStored(s *registry.Services) *registry.State {
	st := &registry.State{Editions: []*registry.Edition{s.Current}, Services: slices.Clone(s.Own)}
	if s.Previous != nil {
		st.Editions = append(st.Editions, s.Previous)
	}
	slices.SortFunc(st.Services, byKey)
	return st
}

func byKey(a, b *registry.OwnService) int { return cmp.Compare(a.Key().ID, b.Key().ID) }
