package registry_test

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

// TestOwnOrder: of the host's own entries on a port the one for the fewest ports answers first, and of equal ones the last.
func TestOwnOrder(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	wide := own("all", 9000, ianadb.TCP, "") // by the alphabet they would come the other way round
	wide.Last = 9999
	for _, e := range []ianadb.Entry{own("bygone", 9100, ianadb.TCP, ""), own("present", 9100, ianadb.TCP, ""), wide} {
		if _, _, err := d.AddServices(t.Context(), root, []ianadb.Entry{e, e}, true); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"present", "bygone", "all"}
	for range 2 {
		if got := names(d.Services(), 9100); !slices.Equal(got[:3], want) {
			t.Errorf("port 9100 is %v, want %v first", got, want)
		}
		if n := len(d.Services().Own); n != 3 {
			t.Errorf("%d entries, want each once", n)
		}
		d.restart(t, parsed(t, "2026-01-01", small()))
	}
	_, _, err := d.AddServices(t.Context(), root, []ianadb.Entry{own("Any", 9101, ianadb.TCP, "")}, false)
	if !errors.Is(err, registry.ErrInvalid) || !strings.Contains(err.Error(), "tcp/any") {
		t.Errorf("a service called any: %v", err)
	}
}

// TestDamagedEdition: without an edition that the disk has spoiled, portd answers from the one that it was built with, and has
// the host's own entries and all reservations.
func TestDamagedEdition(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.mustImport(t, later(), registry.ImportOptions{Date: "2026-06-01"})
	if _, _, err := d.AddServices(t.Context(), root, []ianadb.Entry{own("myapp", 8123, ianadb.TCP, "")}, false); err != nil {
		t.Fatal(err)
	}
	rev := d.Status().Revision
	d.stop()
	raw, err := os.ReadFile(d.path)
	if err != nil {
		t.Fatal(err)
	}
	spoilt := bytes.ReplaceAll(raw, []byte("newapp"), []byte("newapq")) // in the imported one alone
	if bytes.Equal(raw, spoilt) {
		t.Fatal("nothing was spoilt")
	}
	if err := os.WriteFile(d.path, spoilt, 0o600); err != nil {
		t.Fatal(err)
	}
	d.restart(t, parsed(t, "2026-01-01", small()))
	d.want(t, registry.Embedded, "2026-01-01", "2026-01-01")
	if why := d.replaced(t, rev, "2026-01-01"); !strings.Contains(why, "damaged") {
		t.Errorf("the registry was replaced because %q", why)
	}
	if got := names(d.Services(), 8123); !slices.Contains(got, "myapp") {
		t.Errorf("port 8123 is %v", got)
	}
}
