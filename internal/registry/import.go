package registry

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/portd/portd/internal/ianadb"
)

// ImportOptions say how to take a file, and what is known of it beside what it says.
type ImportOptions struct {
	DryRun bool   // change nothing
	Force  bool   // take one that does not look like the next edition
	Date   string // YYYY-MM-DD, of a CSV; an XML must agree

	From, LastModified, ETag string // as in Edition
}

// UndoOptions say what to go back to.
type UndoOptions struct {
	DryRun   bool
	Embedded bool // to the edition that portd was built with rather than to the previous one
}

// A ServiceImport is what replacing an edition changed, or would change.
type ServiceImport struct {
	Before, After     *Services
	DryRun, Unchanged bool // why nothing was changed
	Changes           []ianadb.Change
	// Overridden says, a sentence each, which of the host's own entries the edition gives to others; the host's own win.
	Overridden []string
	Revision   Revision // 0 where nothing was changed
}

// ImportServices puts the registry that it reads from in, as CSV or XML, in place of the edition that answers, whole or
// not at all; that one becomes the previous one. Who looks something up meanwhile waits for nothing, and gets the old
// answer until it is durable. What is wrong with the file is an *InvalidError for "data" with line and reason, of the
// code IMPLAUSIBLE where opt.Force would take it; an error of in is returned as it is.
func (r *Registry) ImportServices(ctx context.Context, c Caller, in io.Reader, opt ImportOptions) (*ServiceImport, error) {
	if err := r.cfg.Policy.EditServices(c, "import a service registry"); err != nil {
		return nil, err
	}
	if err := opt.check(); err != nil {
		return nil, err
	}
	tap := &tap{in: in}
	file, err := ianadb.Parse(tap)
	switch {
	case tap.err != nil:
		return nil, fmt.Errorf("import: %w", tap.err)
	case err != nil:
		return nil, invalid("data", "%v", err)
	}
	e := &Edition{
		Slot: CurrentSlot, Origin: Imported, Date: file.Date, SHA256: file.SHA256, Records: len(file.Entries),
		From: opt.From, LastModified: opt.LastModified, ETag: opt.ETag, By: c.Principal(), Time: time.Now().UTC(),
	}
	switch {
	case opt.Date == "" || opt.Date == file.Date:
	case file.Dated:
		return nil, invalid("options.date", "is %s, and the file says that it is of %s", opt.Date, file.Date)
	default:
		e.Date = opt.Date
	}

	unlock, err := r.lockServices(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	before := r.Services()
	same := before.Current.SHA256 == e.SHA256
	if same && opt.Date == "" {
		e.Date = before.Current.Date
	}
	if same && e.Date == before.Current.Date && before.Unreadable == nil {
		return r.seenAgain(c, before, e, opt.DryRun)
	}
	if !opt.Force && !same {
		stated := file.Dated || opt.Date != "" // rather than told by the latest entry
		if err := before.plausible(e, file.Entries, stated); err != nil {
			return nil, err
		}
	}
	blob, err := ianadb.Compile(file.Entries, ianadb.Source{Date: e.Date, SHA256: e.SHA256})
	if err != nil {
		return nil, invalid("data", "%v", err)
	}
	e.Blob = string(blob)
	return r.replace(c, before, e, opt.DryRun)
}

// UndoImport brings back the previous edition, or the one that portd was built with; what answered until then is the
// previous one next. ErrNotFound where there is none.
func (r *Registry) UndoImport(ctx context.Context, c Caller, opt UndoOptions) (*ServiceImport, error) {
	if err := r.cfg.Policy.EditServices(c, "bring back another service registry"); err != nil {
		return nil, err
	}
	unlock, err := r.lockServices(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	before := r.Services()
	target := before.Previous
	switch {
	case opt.Embedded && before.asBuilt():
		return &ServiceImport{Before: before, After: before, DryRun: opt.DryRun, Unchanged: true}, nil
	case opt.Embedded:
		target = before.Embedded
	case target == nil:
		return nil, failed(ErrNotFound, "there is no previous service registry to bring back: %s is the only one so far", before.Current.describe())
	}
	target = target.in(CurrentSlot)
	if target.Origin == Embedded && target.SHA256 != before.Embedded.SHA256 {
		// Wanted by somebody now, so that the next start does not replace it again.
		target.By, target.Time = c.Principal(), time.Now().UTC()
	}
	return r.replace(c, before, target, opt.DryRun)
}

// asBuilt says whether the edition that answers is there for no other reason than that portd was built with it, so that the
// next portd's takes its place.
func (s *Services) asBuilt() bool {
	e := s.Current
	return e.Origin == Embedded && e.By == "" && e.SHA256 == s.Embedded.SHA256 && s.Unreadable == nil
}

// lockServices waits until nobody else changes the services.
func (r *Registry) lockServices(ctx context.Context) (unlock func(), err error) {
	leave, err := r.gate.enter(ctx)
	if err != nil {
		return nil, err
	}
	select {
	case r.changing <- struct{}{}:
		return func() { <-r.changing; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// replace makes e the edition that answers, and what answered the previous one unless it says the same. The caller has the
// lock.
func (r *Registry) replace(c Caller, before *Services, e *Edition, dry bool) (*ServiceImport, error) {
	db, err := r.open(e)
	if err != nil {
		return nil, failed(ErrUnsupported, "the service registry of %s cannot be read by this portd: %v; import it again", e.describe(), err)
	}
	after := *before
	after.IANA, after.Current, after.Unreadable = db, e, nil
	if e.SHA256 != before.Current.SHA256 {
		after.Previous = before.Current.in(PreviousSlot)
	}
	out := &ServiceImport{Before: before, After: &after, DryRun: dry}
	var prepared sync.WaitGroup
	if !dry {
		prepared.Go(after.Prepare) // or the first search would wait for it
	}
	out.Changes, out.Overridden = ianadb.Diff(before.IANA, db), after.overridden()
	if dry {
		return out, nil
	}
	cm := &commit{by: c.Principal(), put: []Record{e}}
	if after.Previous != before.Previous {
		cm.put = append(cm.put, after.Previous)
	}
	reason := countChanges(out.Changes)
	cm.events = []Event{{Type: EventRegistryReplaced, Edition: e.facts(), Caller: cm.by, Reason: reason}}
	cm.apply = append(cm.apply, func() { r.services.Store(&after) })
	prepared.Wait()
	if err := r.commit(cm); err != nil {
		return nil, err
	}
	out.Revision = cm.rev
	r.cfg.Log.Info("the service registry is replaced", "by", cm.by, "before", before.Current.describe(), "after", e.describe(), "reason", reason)
	return out, nil
}

// seenAgain answers an import of the edition that is there already. What a web server says of it is kept, so that it need
// not be fetched again; nothing else is.
func (r *Registry) seenAgain(c Caller, before *Services, e *Edition, dry bool) (*ServiceImport, error) {
	out := &ServiceImport{Before: before, After: before, DryRun: dry, Unchanged: true}
	have := before.Current
	if dry || e.From != have.From || e.LastModified == have.LastModified && e.ETag == have.ETag {
		return out, nil
	}
	after := *before
	after.Current = have.in(CurrentSlot)
	after.Current.LastModified, after.Current.ETag = e.LastModified, e.ETag
	cm := &commit{by: c.Principal(), put: []Record{after.Current}}
	cm.apply = append(cm.apply, func() { r.services.Store(&after) })
	out.After = &after
	return out, r.commit(cm)
}

// open reads an edition; the one that portd was built with is open already.
func (r *Registry) open(e *Edition) (*ianadb.DB, error) {
	if e.Blob == r.cfg.Services.Blob() {
		return r.cfg.Services, nil
	}
	return ianadb.Open(e.Blob)
}

// overridden says which of the host's own entries IANA gives to others.
func (s *Services) overridden() []string {
	var all []string
	for _, o := range s.Own {
		for _, clash := range clashesWithIANA(s.IANA, o.Entry) {
			all = append(all, clash+", and here "+entryText(o.Entry))
		}
	}
	return all
}

func countChanges(changes []ianadb.Change) string {
	var n [ianadb.Changed + 1]int
	for _, c := range changes {
		n[c.Kind]++
	}
	var text []string
	for kind, count := range n {
		text = append(text, fmt.Sprintf("%d %v", count, ianadb.ChangeKind(kind)))
	}
	return strings.Join(text, ", ")
}
