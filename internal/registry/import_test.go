package registry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
)

func TestImport(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.want(t, registry.Embedded, "2026-01-01", "none")
	opt := registry.ImportOptions{Date: "2026-06-01", From: "new.csv"}

	dry := opt
	dry.DryRun = true
	before, rev := d.Services(), d.Status().Revision
	told := d.mustImport(t, later(), dry)
	if d.Services() != before || d.Status().Revision != rev || !told.DryRun {
		t.Error("a dry run has changed something")
	}
	done := d.mustImport(t, later(), opt)
	if diff := cmp.Diff(told.Changes, done.Changes); diff != "" {
		t.Errorf("what a dry run told and an import did (-dry +real):\n%s", diff)
	}
	var kinds []string
	for _, c := range done.Changes {
		kinds = append(kinds, c.Kind.String())
	}
	slices.Sort(kinds)
	if diff := cmp.Diff([]string{"added", "changed", "removed", "renamed"}, kinds); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	d.want(t, registry.Imported, "2026-06-01", "2026-01-01")
	if e := d.Services().Current; e.By != "uid:0" || e.From != "new.csv" || e.Time.IsZero() {
		t.Errorf("of the import is known %+v", e)
	}
	if got := names(d.Services(), 591); !slices.Equal(got, []string{"filemaker"}) || done.Before != before || done.After != d.Services() {
		t.Errorf("port 591 is %v", got)
	}
	db := edition(t, "2026-01-01", small())
	d.restart(t, db)
	d.want(t, registry.Imported, "2026-06-01", "2026-01-01")

	// The same again.
	rev = d.Status().Revision
	for _, again := range []registry.ImportOptions{opt, {}, {Force: true}} {
		if same := d.mustImport(t, later(), again); !same.Unchanged || len(same.Changes) != 0 || d.Status().Revision != rev {
			t.Errorf("imported again with %+v: unchanged is %v, revision %d", again, same.Unchanged, d.Status().Revision)
		}
	}
	// What a web server says of it is worth keeping if it came from there, and its date.
	for _, tt := range []struct{ from, want string }{{"https://example.org", ""}, {opt.From, `"1"`}} {
		same := d.mustImport(t, later(), registry.ImportOptions{ETag: `"1"`, From: tt.from})
		if e := d.Services().Current; !same.Unchanged || e.ETag != tt.want || e.From != opt.From {
			t.Errorf("seen again at %s: the ETag is %q, from %s", tt.from, e.ETag, e.From)
		}
	}
	d.want(t, registry.Imported, "2026-06-01", "2026-01-01")
	if dated := d.mustImport(t, later(), registry.ImportOptions{Date: "2026-06-02"}); dated.Unchanged || len(dated.Changes) != 0 {
		t.Errorf("with another date: %+v", dated)
	}
	d.want(t, registry.Imported, "2026-06-02", "2026-01-01")

	// Back and forth.
	undo := func(opt registry.UndoOptions) *registry.ServiceImport {
		t.Helper()
		done, err := d.UndoImport(t.Context(), root, opt)
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	if dry := undo(registry.UndoOptions{DryRun: true}); len(dry.Changes) != 4 {
		t.Errorf("an undo would make %d changes", len(dry.Changes))
	}
	d.want(t, registry.Imported, "2026-06-02", "2026-01-01")
	undo(registry.UndoOptions{})
	d.want(t, registry.Embedded, "2026-01-01", "2026-06-02")
	d.restart(t, db)
	d.want(t, registry.Embedded, "2026-01-01", "2026-06-02")
	undo(registry.UndoOptions{})
	d.want(t, registry.Imported, "2026-06-02", "2026-01-01")
	d.mustImport(t, small()[:8], registry.ImportOptions{Date: "2026-07-01", Force: true})
	d.want(t, registry.Imported, "2026-07-01", "2026-06-02")
	undo(registry.UndoOptions{Embedded: true})
	d.want(t, registry.Embedded, "2026-01-01", "2026-07-01")
	if !undo(registry.UndoOptions{Embedded: true}).Unchanged {
		t.Error("back to where it is: something changed")
	}
	d.restart(t, db)
	d.want(t, registry.Embedded, "2026-01-01", "2026-07-01")
}

// A file that is refused leaves everything as it is, and the reason names what is wrong.
func TestImportRefused(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	csv := file(t, later()).String()
	twice := strings.Replace(csv, "http,80,udp", "http,80,tcp", 1)
	reading := errors.New("the line went dead")
	for _, tt := range []struct {
		name string
		in   string
		opt  registry.ImportOptions
		code string
		says string
	}{
		{"nothing", "", registry.ImportOptions{}, "", "line 1: this is empty"},
		{"a page", "<!DOCTYPE html><html><body>404</body></html>", registry.ImportOptions{}, "", "HTML"},
		{"header", strings.Replace(csv, "Port Number", "Port", 1), registry.ImportOptions{}, "", "line 1: header"},
		{"cut off", csv[:len(csv)/2], registry.ImportOptions{}, "", "line "},
		{"duplicate", twice, registry.ImportOptions{}, "", "duplicate"},
		{"impossible port", strings.Replace(csv, ",443,", ",66443,", 1), registry.ImportOptions{}, "", "66443"},
		{"too small", file(t, small()[:4]).String(), registry.ImportOptions{}, "IMPLAUSIBLE", "force takes it"},
		{"older", csv, registry.ImportOptions{Date: "2025-12-31"}, "IMPLAUSIBLE", "newer, of 2026-01-01"},
		{"no date", csv, registry.ImportOptions{Date: "2026-13-01"}, "", "write it like"},
		{"tomorrow's", csv, registry.ImportOptions{Date: "9999-01-01"}, "", "in the future"},
		{"odd source", csv, registry.ImportOptions{From: "\x1b]0;"}, "", "control character"},
	} {
		before, rev := d.Services(), d.Status().Revision
		_, err := d.ImportServices(t.Context(), root, strings.NewReader(tt.in), tt.opt)
		var invalid *registry.InvalidError
		if !errors.As(err, &invalid) || invalid.Code != tt.code || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.says)
		}
		if d.Services() != before || d.Status().Revision != rev {
			t.Errorf("%s: it has changed something", tt.name)
		}
	}
	if _, err := d.ImportServices(t.Context(), root, &broken{strings.NewReader(csv[:100]), reading}, registry.ImportOptions{}); !errors.Is(err, reading) || errors.Is(err, registry.ErrInvalid) {
		t.Errorf("a source that fails: %v", err)
	}
	if _, err := d.UndoImport(t.Context(), root, registry.UndoOptions{}); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("undo without an import: %v", err)
	}
	d.want(t, registry.Embedded, "2026-01-01", "none")
}

// A file that says it is of a day to come would make all that follows look older.
func TestImportFromTheFuture(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	xml, err := os.ReadFile("../ianadb/testdata/excerpt.xml")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		updated string
		force   bool
		says    string
	}{
		{"2026-08-17", true, ""},
		{"9999-01-01", false, "in the future"},
		{"9999-01-01", true, ""},
	} {
		file := bytes.Replace(xml, []byte("<updated>2026-08-17<"), []byte("<updated>"+tt.updated+"<"), 1)
		_, err := d.ImportServices(t.Context(), root, bytes.NewReader(file), registry.ImportOptions{Force: tt.force})
		var invalid *registry.InvalidError
		switch {
		case tt.says == "" && err == nil:
		case tt.says == "" || !errors.As(err, &invalid) || invalid.Code != "IMPLAUSIBLE" || !strings.Contains(err.Error(), tt.says):
			t.Errorf("of %s, force is %v: %v, want %q", tt.updated, tt.force, err, tt.says)
		}
	}
	d.want(t, registry.Imported, "9999-01-01", "2026-08-17")
}

// broken reads what it has, and then fails.
type broken struct {
	in  *strings.Reader
	err error
}

func (b *broken) Read(p []byte) (int, error) {
	if b.in.Len() == 0 {
		return 0, b.err
	}
	return b.in.Read(p)
}

// A CSV has no date of its own. The day of its latest entry does for one, and does not count against what somebody has said.
func TestImportWithoutADate(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	entries := later()
	entries[0].ModificationDate = "2026-05-05"
	d.mustImport(t, entries, registry.ImportOptions{})
	d.want(t, registry.Imported, "2026-05-05", "2026-01-01")
	d.mustImport(t, entries, registry.ImportOptions{Date: "2026-06-01"})
	if again := d.mustImport(t, entries, registry.ImportOptions{}); !again.Unchanged {
		t.Error("the same file without a date changes something")
	}
	d.want(t, registry.Imported, "2026-06-01", "2026-01-01")
	entries[4].ModificationDate = "2026-05-06"
	d.mustImport(t, entries, registry.ImportOptions{}) // newer, though 2026-06-01 was said of the last one
	d.want(t, registry.Imported, "2026-05-06", "2026-06-01")
}

// Who sends a file slowly holds up nobody.
func TestSlowImport(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	slow, rest := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := d.ImportServices(t.Context(), root, slow, registry.ImportOptions{})
		ended <- err
	}()
	csv := file(t, small()[:9]).Bytes()
	if _, err := rest.Write(csv[:100]); err != nil { // so it has begun
		t.Fatal(err)
	}
	if _, _, err := d.AddServices(t.Context(), root, []ianadb.Entry{own("myapp", 8123, ianadb.TCP, "")}, false); err != nil {
		t.Error(err)
	}
	d.mustImport(t, later(), registry.ImportOptions{Date: "2026-06-01"})
	if _, err := rest.Write(csv[100:]); err != nil {
		t.Fatal(err)
	}
	rest.Close()
	// It is compared with what answers by then.
	if err := <-ended; err != nil {
		t.Error(err)
	}
	d.want(t, registry.Imported, "", "2026-06-01")
	if len(d.Services().Own) != 1 {
		t.Errorf("the host's own are %+v", d.Services().Own)
	}
}

// What cannot be written is not done.
func TestImportUnwritten(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r := registry.New(registry.Config{Store: store, Binder: pegs, Services: edition(t, "2026-01-01", small()), BootID: "boot"})
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	before := r.Services()
	store.mu.Lock()
	store.fail = errors.New("disk full")
	store.mu.Unlock()
	if _, err := r.ImportServices(t.Context(), root, file(t, later()), registry.ImportOptions{}); !errors.Is(err, store.fail) {
		t.Errorf("import: %v", err)
	}
	if _, _, err := r.AddServices(t.Context(), root, []ianadb.Entry{own("myapp", 8123, ianadb.TCP, "")}, false); !errors.Is(err, store.fail) {
		t.Errorf("add: %v", err)
	}
	if r.Services() != before {
		t.Error("something changed")
	}
}

// Every look-up during imports is answered from one edition or the other, never from parts of both.
func TestLookupsDuringImports(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	ctx, stop := context.WithCancel(t.Context())
	var looking sync.WaitGroup
	for range 4 {
		looking.Go(func() {
			for looked := 0; ctx.Err() == nil || looked == 0; looked++ {
				s := d.Services()
				got := strings.Join(names(s, 591), " ") + " of " + s.Current.Date
				if got != "http-alt of 2026-01-01" && got != "filemaker of 2026-06-01" {
					t.Errorf("591 is %s", got)
					return
				}
				s.Search("http", ianadb.AnyProtocol, 0, 10)
			}
		})
	}
	var importing sync.WaitGroup
	for range 3 {
		importing.Go(func() {
			for range 5 {
				d.mustImport(t, later(), registry.ImportOptions{Date: "2026-06-01"})
				if _, err := d.UndoImport(t.Context(), root, registry.UndoOptions{Embedded: true}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	importing.Wait()
	stop()
	looking.Wait()
	d.want(t, registry.Embedded, "2026-01-01", "2026-06-01")
}
