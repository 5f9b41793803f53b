package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
)

// A desk is a Registry on a store in a file, with a small service registry that it was built with.
type desk struct {
	*registry.Registry
	path string
	stop func()
}

var root = registry.Caller{UID: 0, Netns: registry.HostNetns}

// restart opens the store again with a portd that was built with db.
func (d *desk) restart(t *testing.T, db *ianadb.DB) {
	t.Helper()
	if d.stop != nil {
		d.stop()
	}
	store, err := boltstore.Open(d.path, boltstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, pegs := newStandIns()
	d.Registry = registry.New(registry.Config{Store: store, Binder: pegs, Services: db, BootID: "boot"})
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func(r *registry.Registry) { ended <- r.Run(ctx) }(d.Registry)
	d.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-ended, store.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(d.stop)
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{path: filepath.Join(t.TempDir(), "portd.db")}
	d.restart(t, edition(t, "2026-01-01", small()))
	return d
}

// small is a registry like IANA's, only smaller.
func small() []ianadb.Entry {
	entries := []ianadb.Entry{
		{Name: "ssh", First: 22, Last: 22, Protocol: ianadb.TCP, Description: "The Secure Shell"},
		{Name: "http", First: 80, Last: 80, Protocol: ianadb.TCP, Description: "World Wide Web HTTP"},
		{Name: "http", First: 80, Last: 80, Protocol: ianadb.UDP, Description: "World Wide Web HTTP"},
		{Name: "https", First: 443, Last: 443, Protocol: ianadb.TCP, Description: "http over TLS"},
		{Name: "http-alt", First: 591, Last: 591, Protocol: ianadb.TCP},
		{Name: "x11", First: 6000, Last: 6063, Protocol: ianadb.TCP},
		{First: 7000, Last: 7999, Protocol: ianadb.TCP, Description: "Unassigned"},
		{Name: "http-alt", First: 8008, Last: 8008, Protocol: ianadb.TCP},
		{First: 8100, Last: 8999, Protocol: ianadb.TCP, Description: "Unassigned"},
		{First: 8100, Last: 8999, Protocol: ianadb.UDP, Description: "Unassigned"},
		{Name: "nowhere", Protocol: ianadb.TCP},
	}
	for i := range entries {
		if e := &entries[i]; e.First != 0 {
			e.Port = fmt.Sprint(e.First)
			if e.Last != e.First {
				e.Port += fmt.Sprintf("-%d", e.Last)
			}
		}
	}
	return entries
}

// later is small after a year: of everything that changes, one.
func later() []ianadb.Entry {
	entries := small()
	entries[0].Description = "The Secure Shell (SSH) Protocol"               // changed
	entries[4].Name = "filemaker"                                            // renamed
	entries = slices.Delete(entries, 5, 6)                                   // x11 removed
	entries = slices.Insert(entries, 5, own("newapp", 7998, ianadb.TCP, "")) // added
	return entries
}

func own(name string, port uint16, p ianadb.Protocol, description string) ianadb.Entry {
	return ianadb.Entry{Name: name, Port: fmt.Sprint(port), First: port, Last: port, Protocol: p, Description: description}
}

func edition(t testing.TB, date string, entries []ianadb.Entry) *ianadb.DB {
	t.Helper()
	source := ianadb.Source{Date: date}
	copy(source.SHA256[:], date+fmt.Sprint(len(entries)))
	blob, err := ianadb.Compile(entries, source)
	if err != nil {
		t.Fatal(err)
	}
	db, err := ianadb.Open(string(blob))
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func file(t testing.TB, entries []ianadb.Entry) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	if err := ianadb.WriteCSV(&b, slices.Values(entries)); err != nil {
		t.Fatal(err)
	}
	return &b
}

// names are the services of a port, own ones first.
func names(s *registry.Services, port uint16) []string {
	return slices.Collect(s.Names(port, ianadb.TCP))
}

// want fails t unless an edition with these facts answers.
func (d *desk) want(t *testing.T, origin registry.Origin, date, previous string) {
	t.Helper()
	s := d.Services()
	was := "none"
	if s.Previous != nil {
		was = s.Previous.Date
	}
	if got := []string{s.Current.Origin.String(), s.Current.Date, was}; !slices.Equal(got, []string{origin.String(), date, previous}) {
		t.Errorf("origin, date and previous date are %v, want %v %s %s", got, origin, date, previous)
	}
	if src := s.IANA.Source(); src.Date != date || src.SHA256 != s.Current.SHA256 || s.IANA.Len() != s.Current.Records || s.IANA.Blob() != s.Current.Blob {
		t.Errorf("what answers is of %s with %d records, and said is %+v", src.Date, s.IANA.Len(), s.Current.Records)
	}
}

func (d *desk) mustImport(t *testing.T, entries []ianadb.Entry, opt registry.ImportOptions) *registry.ServiceImport {
	t.Helper()
	done, err := d.ImportServices(t.Context(), root, file(t, entries), opt)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func TestServiceEvents(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	from := d.Status().Revision + 1
	sel := registry.ServiceSelector{Name: "myapp"}
	if _, _, err := d.AddServices(t.Context(), root, []ianadb.Entry{own("myapp", 8123, ianadb.TCP, "")}, false); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.EditServices(t.Context(), root, sel, func(e *ianadb.Entry) { e.Description = "Ours" }, false); err != nil {
		t.Fatal(err)
	}
	if _, err := d.RemoveServices(t.Context(), root, sel); err != nil {
		t.Fatal(err)
	}
	d.mustImport(t, later(), registry.ImportOptions{})
	watch := func(f registry.Filter) (got []string) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		last := d.Status().Revision
		err := d.Watch(ctx, alice, registry.WatchRequest{From: from, Filter: f, Progress: 1}, func(_ string, ch registry.Change) error {
			for _, ev := range ch.Events {
				switch {
				case ev.Service != nil:
					got = append(got, fmt.Sprintf("%d %s %q by %s", ev.Type, ev.Service.Entry.Name, ev.Service.Entry.Description, ev.Caller))
				case ev.Edition != nil:
					got = append(got, fmt.Sprintf("%d %d records: %s", ev.Type, ev.Edition.Records, ev.Reason))
				}
			}
			if ch.Revision >= last {
				stop()
			}
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		return got
	}
	want := []string{
		fmt.Sprintf(`%d myapp "" by uid:0`, registry.EventServiceAdded),
		fmt.Sprintf(`%d myapp "Ours" by uid:0`, registry.EventServiceEdited),
		fmt.Sprintf(`%d myapp "Ours" by uid:0`, registry.EventServiceRemoved),
		fmt.Sprintf(`%d 11 records: 1 added, 1 removed, 1 renamed, 1 changed`, registry.EventRegistryReplaced),
	}
	for _, tt := range []struct {
		filter registry.Filter
		want   []string
	}{
		{registry.Filter{}, want},
		{registry.Filter{Owner: "uid:0"}, want},
		{registry.Filter{Owner: alice.Principal()}, nil},
		{registry.Filter{Proto: registry.TCP}, nil},
		{registry.Filter{Lease: "lse_1"}, nil},
	} {
		if diff := cmp.Diff(tt.want, watch(tt.filter), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tt.filter, diff)
		}
	}
}
