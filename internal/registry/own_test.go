package registry_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

func TestServicesPolicy(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	myapp := own("myapp", 8123, ianadb.TCP, "")
	if _, _, err := d.AddServices(t.Context(), root, []ianadb.Entry{myapp}, false); err != nil {
		t.Fatal(err)
	}
	before := d.Services()
	sel := registry.ServiceSelector{Name: "myapp"}
	for what, try := range map[string]func() error{
		"import": func() error {
			_, err := d.ImportServices(t.Context(), alice, unread{t}, registry.ImportOptions{})
			return err
		},
		"undo": func() error { _, err := d.UndoImport(t.Context(), alice, registry.UndoOptions{}); return err },
		"add":  func() error { _, _, err := d.AddServices(t.Context(), alice, []ianadb.Entry{myapp}, false); return err },
		"edit": func() error {
			_, _, err := d.EditServices(t.Context(), alice, sel, func(*ianadb.Entry) {}, false)
			return err
		},
		"remove": func() error { _, err := d.RemoveServices(t.Context(), alice, sel); return err },
	} {
		if err := try(); !errors.Is(err, registry.ErrDenied) {
			t.Errorf("%s by another user: %v", what, err)
		}
	}
	if d.Services() != before {
		t.Error("something changed")
	}
}

// unread is a file of somebody who may not import it.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("it was read")
	return 0, errors.New("not to be read")
}

func TestOwnServices(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	db := edition(t, "2026-01-01", small())
	add := func(override bool, entries ...ianadb.Entry) ([]string, error) {
		t.Helper()
		_, overridden, err := d.AddServices(t.Context(), root, entries, override)
		return overridden, err
	}
	myapp := own("myapp", 8123, ianadb.TCP, "Ours")
	if overridden, err := add(false, myapp, own("myapp", 8123, ianadb.UDP, "Ours")); err != nil || overridden != nil {
		t.Fatal(overridden, err)
	}
	s := d.Services()
	if got := names(s, 8123); !slices.Equal(got, []string{"myapp"}) || s.Unassigned(8123, ianadb.TCP) || len(s.Own) != 2 || s.Own[0].By != "uid:0" || s.Own[0].Revision != d.Status().Revision {
		t.Errorf("8123 is %v, and the host's own are %+v", got, s.Own)
	}
	res, err := d.Reserve(t.Context(), alice, registry.ReserveRequest{Spec: spec(t, "tcp,udp/MyApp")})
	if err != nil || res.Endpoints() != "tcp/8123, udp/8123" {
		t.Errorf("reserved by name: %v, %v", res, err)
	}
	// The very same is there already.
	rev := d.Status().Revision
	if _, err := add(false, myapp); err != nil || d.Status().Revision != rev {
		t.Errorf("added again: %v, revision %d", err, d.Status().Revision)
	}
	other := myapp
	other.Description = "Others'"
	if _, err := add(true, other); !errors.Is(err, registry.ErrTaken) || !strings.Contains(err.Error(), "edit that") {
		t.Errorf("with other words: %v", err)
	}
	wide := own("wide", 8120, ianadb.TCP, "")
	wide.Last = 8130
	for _, tt := range []struct {
		entry ianadb.Entry
		says  []string
	}{
		{own("web", 443, ianadb.TCP, ""), []string{"443/tcp is https (IANA)"}},
		{own("screen", 6010, ianadb.TCP, ""), []string{"6000-6063/tcp is x11 (IANA)"}},
		{own("HTTPS", 8443, ianadb.TCP, ""), []string{"HTTPS is 443/tcp (IANA)"}},
		{own("http-alt", 8888, ianadb.TCP, ""), []string{"http-alt is 591/tcp, 8008/tcp (IANA)"}},
		{wide, []string{"8123/tcp is myapp (this host's own)"}},
		{own("ssh", 80, ianadb.TCP, ""), []string{"80/tcp is http (IANA)", "ssh is 22/tcp (IANA)"}},
		// No clash: IANA's own service, one port of several, another protocol, a name without a port.
		{own("ssh", 22, ianadb.TCP, "ours"), nil},
		{own("http-alt", 8008, ianadb.TCP, ""), nil},
		{own("http", 8181, ianadb.SCTP, ""), nil},
		{own("nowhere", 8180, ianadb.TCP, ""), nil},
	} {
		_, err := add(false, tt.entry)
		var clash *registry.ClashError
		errors.As(err, &clash)
		if tt.says == nil {
			if err != nil {
				t.Errorf("%s: %v", tt.entry.Name, err)
			}
			continue
		}
		if clash == nil || !errors.Is(err, registry.ErrTaken) || !slices.Equal(clash.Clashes, tt.says) {
			t.Errorf("%s %s: %v, want %q", tt.entry.Name, tt.entry.Port, err, tt.says)
			continue
		}
		overridden, err := add(true, tt.entry)
		if err != nil || !slices.Equal(overridden, tt.says) {
			t.Errorf("%s overriding: %v, %q", tt.entry.Name, err, overridden)
		}
	}
	if got := names(d.Services(), 443); !slices.Equal(got, []string{"web", "https"}) {
		t.Errorf("443 is %v", got)
	}

	// They survive an import, which says whom it gives theirs to, and a restart.
	imported := append(later(), own("newer", 8123, ianadb.TCP, ""))
	done := d.mustImport(t, imported, registry.ImportOptions{Date: "2026-06-01"})
	if !slices.Contains(done.Overridden, "8123/tcp is newer (IANA), and here myapp 8123/tcp") {
		t.Errorf("overridden are %q", done.Overridden)
	}
	before := d.Services().Own
	d.restart(t, db)
	if diff := cmp.Diff(before, d.Services().Own); diff != "" {
		t.Errorf("after a restart (-before +after):\n%s", diff)
	}
	if got := names(d.Services(), 8123); !slices.Equal(got, []string{"myapp", "wide", "newer"}) {
		t.Errorf("8123 is %v", got)
	}

	// Moved, renamed, described.
	edit := func(sel registry.ServiceSelector, change func(*ianadb.Entry)) error {
		_, _, err := d.EditServices(t.Context(), root, sel, change, false)
		return err
	}
	udp := registry.ServiceSelector{Name: "MYAPP", Protocol: ianadb.UDP}
	if err := edit(udp, func(e *ianadb.Entry) { e.First, e.Last = 8124, 8125 }); err != nil {
		t.Error(err)
	}
	if err := edit(udp, func(e *ianadb.Entry) { e.First, e.Last = 80, 80 }); !errors.As(err, new(*registry.ClashError)) {
		t.Errorf("moved to where http is: %v", err)
	}
	if err := edit(registry.ServiceSelector{Name: "web"}, func(e *ianadb.Entry) { e.Notes = "Clashes, as it did." }); err != nil {
		t.Error(err)
	}
	if err := edit(registry.ServiceSelector{Name: "myapp"}, func(e *ianadb.Entry) { e.Name = "yours" }); !errors.As(err, new(*registry.ClashError)) {
		t.Errorf("renamed onto newer's port: %v", err) // 8123/tcp is newer now, and only a name that was there may stay
	}
	if err := edit(registry.ServiceSelector{Name: "screen"}, func(e *ianadb.Entry) { e.Name, e.First, e.Last = "web", 443, 443 }); !errors.Is(err, registry.ErrTaken) {
		t.Errorf("edited onto another: %v", err)
	}
	if _, err := add(true, own("twins", 8401, ianadb.TCP, ""), own("twins", 8402, ianadb.TCP, "")); err != nil {
		t.Fatal(err)
	}
	for _, port := range []uint16{8401, 8402, 8403} { // of whom one is there already, the other one, or neither
		if err := edit(registry.ServiceSelector{Name: "twins"}, func(e *ianadb.Entry) { e.First, e.Last = port, port }); !errors.Is(err, registry.ErrTaken) {
			t.Errorf("two edited into one at %d: %v", port, err)
		}
	}
	rev = d.Status().Revision
	if err := edit(udp, func(*ianadb.Entry) {}); err != nil || d.Status().Revision != rev {
		t.Errorf("an edit that changes nothing: %v, revision %d", err, d.Status().Revision)
	}
	if got := slices.Collect(d.Services().Names(8125, ianadb.UDP)); !slices.Equal(got, []string{"myapp"}) || !d.Services().Unassigned(8123, ianadb.UDP) {
		t.Errorf("8125/udp is %v", got)
	}
	for _, sel := range []registry.ServiceSelector{{Name: "none"}, {Name: "https", Protocol: ianadb.UDP}, {Name: "wide", Ports: ianadb.Range{First: 8121, Last: 8121}}} {
		if _, err := d.RemoveServices(t.Context(), root, sel); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("remove %v: %v", sel, err)
		}
	}
	for _, s := range d.Services().Own {
		// Each of a name goes with the first.
		if _, err := d.RemoveServices(t.Context(), root, registry.ServiceSelector{Name: s.Entry.Name}); err != nil && !errors.Is(err, registry.ErrNotFound) {
			t.Error(err)
		}
	}
	d.restart(t, db)
	if s := d.Services(); len(s.Own) != 0 || s.Directory.Own != nil {
		t.Errorf("left are %+v", s.Own)
	}
}

func TestOwnServicesRefused(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	with := func(change func(*ianadb.Entry)) ianadb.Entry {
		e := own("myapp", 8123, ianadb.TCP, "")
		change(&e)
		return e
	}
	for _, tt := range []struct {
		entry       ianadb.Entry
		field, says string
	}{
		{with(func(e *ianadb.Entry) { e.Name = "my_app" }), "services.name", "RFC 6335"},
		{with(func(e *ianadb.Entry) { e.Name = "ANY" }), "services.name", "tcp/any"},
		{with(func(e *ianadb.Entry) { e.Protocol = ianadb.AnyProtocol }), "services.protocol", "allowed are tcp"},
		{with(func(e *ianadb.Entry) { e.First = 0 }), "services.ports", "1 to 65535"},
		{with(func(e *ianadb.Entry) { e.First = 8124 }), "services.ports", "backwards"},
		{with(func(e *ianadb.Entry) { e.Description = "\x1b[31m" }), "services.description", "control character U+001B"},
		{with(func(e *ianadb.Entry) { e.Description = "safe \u202egnihtemos" }), "services.description", "control character U+202E"},
		{with(func(e *ianadb.Entry) { e.Notes = "\xff" }), "services.notes", "UTF-8"},
		{with(func(e *ianadb.Entry) { e.Notes, e.Contact = strings.Repeat("n", 2100), strings.Repeat("c", 2100) }), "services", "4200 bytes"},
		{with(func(e *ianadb.Entry) { e.RegistrationDate = "yesterday" }), "services", "2006-01"},
		{with(func(e *ianadb.Entry) { e.ServiceCode = "SC:DISC" }), "services.service_code", "dccp"},
	} {
		// One that is right goes with the one that is wrong.
		_, _, err := d.AddServices(t.Context(), root, []ianadb.Entry{own("right", 8200, ianadb.TCP, ""), tt.entry}, false)
		var invalid *registry.InvalidError
		if !errors.As(err, &invalid) || invalid.Field != tt.field || !strings.Contains(invalid.Reason, tt.says) {
			t.Errorf("%+v: %v, want %s to say %q", tt.entry, err, tt.field, tt.says)
		}
	}
	if own := d.Services().Own; len(own) != 0 {
		t.Errorf("the host has %d entries", len(own))
	}
	long := make([]ianadb.Entry, 256)
	for i := range long {
		long[i] = own("long", uint16(8400+i), ianadb.UDP, strings.Repeat("l", 4096))
	}
	if _, _, err := d.AddServices(t.Context(), root, long, false); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.AddServices(t.Context(), root, []ianadb.Entry{own("right", 8200, ianadb.TCP, "one word too many")}, false); !errors.Is(err, registry.ErrExhausted) || !strings.Contains(err.Error(), "say less") {
		t.Errorf("more than a MiB of words: %v", err)
	}
	if _, err := d.RemoveServices(t.Context(), root, registry.ServiceSelector{Name: "long"}); err != nil {
		t.Fatal(err)
	}
	many := make([]ianadb.Entry, 4096)
	for i := range many {
		many[i] = own(fmt.Sprintf("app-%d", i), uint16(10_000+i), ianadb.TCP, "")
	}
	if _, _, err := d.AddServices(t.Context(), root, many, false); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.AddServices(t.Context(), root, []ianadb.Entry{own("right", 8200, ianadb.TCP, "")}, false); !errors.Is(err, registry.ErrExhausted) || !strings.Contains(err.Error(), "4096") {
		t.Errorf("one too many: %v", err)
	}
}

// A wide range clashes with thousands, of which a few are told, and how many there are.
func TestManyClashes(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{})
	wide := own("wide", 1, ianadb.TCP, "")
	wide.Last = 65535
	services := 0
	for rec := range ianadb.Embedded().All() {
		if _, hasPort := rec.Ports(); hasPort && rec.Name() != "" && (rec.Protocol() == ianadb.TCP || rec.Protocol() == ianadb.AnyProtocol) {
			services++ // some have no protocol: they are for all
		}
	}
	_, overridden, err := r.AddServices(t.Context(), root, []ianadb.Entry{wide}, true)
	want := fmt.Sprintf("%d more services have ports of it (IANA)", services-8)
	if err != nil || len(overridden) != 9 || overridden[0] != "1/tcp is tcpmux (IANA)" || overridden[8] != want {
		t.Errorf("over IANA's: %q, %v; want the last one %q", overridden, err, want)
	}
	for i := range uint16(9) {
		e := own("narrow", 50000+i, ianadb.TCP, "")
		if _, _, err := r.AddServices(t.Context(), root, []ianadb.Entry{e}, true); err != nil {
			t.Fatal(err)
		}
	}
	e := own("broad", 50000, ianadb.TCP, "")
	e.Last = 50010
	_, _, err = r.AddServices(t.Context(), root, []ianadb.Entry{e}, false)
	var clash *registry.ClashError
	if !errors.As(err, &clash) || len(clash.Clashes) != 9 || clash.Clashes[0] != "50000/tcp is narrow (this host's own)" ||
		clash.Clashes[8] != "2 more have ports of it (this host's own)" {
		t.Errorf("over the host's own: %v", err)
	}
}
