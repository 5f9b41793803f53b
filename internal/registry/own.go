package registry

import (
	"context"
	"slices"
	"strings"

	"github.com/portd/portd/internal/ianadb"
)

// A ServiceSelector names entries of the host's own.
type ServiceSelector struct {
	Name     string
	Protocol ianadb.Protocol // AnyProtocol: all
	Ports    ianadb.Range    // just these; the zero Range: all
}

func (s ServiceSelector) match(e ianadb.Entry) bool {
	return strings.EqualFold(s.Name, e.Name) && (s.Protocol == ianadb.AnyProtocol || s.Protocol == e.Protocol) &&
		(s.Ports == (ianadb.Range{}) || s.Ports == ianadb.Range{First: e.First, Last: e.Last})
}

func (s ServiceSelector) String() string {
	text := s.Name
	if s.Ports != (ianadb.Range{}) {
		text += " " + portsText(s.Ports.First, s.Ports.Last)
	}
	if s.Protocol != ianadb.AnyProtocol {
		text += "/" + s.Protocol.String()
	}
	return text
}

// AddServices adds entries of the host's own, all or none, and returns them as they are then; one that is there already,
// just so, stays as it is. What clashes with IANA's registry or with another entry is a *ClashError, or with override a
// sentence in overridden. First and Last say which ports an entry has; Port is made from them.
func (r *Registry) AddServices(ctx context.Context, c Caller, entries []ianadb.Entry, override bool) (added []*OwnService, overridden []string, err error) {
	if err := r.cfg.Policy.EditServices(c, "add services"); err != nil {
		return nil, nil, err
	}
	if len(entries) == 0 {
		return nil, nil, invalid("services", "is empty; at least one is wanted")
	}
	ch, unlock, err := r.changeOwn(ctx, c, override)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	for _, e := range entries {
		s, err := ch.add(e)
		if err != nil {
			return nil, nil, err
		}
		if !slices.Contains(added, s) { // said twice
			added = append(added, s)
		}
	}
	return added, ch.overridden, r.commitOwn(ch)
}

// EditServices changes what sel names by edit, all or none, and returns all of it as it is then. An entry whose name,
// protocol or ports change is checked as AddServices does. ErrNotFound where the host has no such entry.
func (r *Registry) EditServices(ctx context.Context, c Caller, sel ServiceSelector, edit func(*ianadb.Entry), override bool) (after []*OwnService, overridden []string, err error) {
	if err := r.cfg.Policy.EditServices(c, "edit the service "+sel.String()); err != nil {
		return nil, nil, err
	}
	ch, unlock, err := r.changeOwn(ctx, c, override)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	before, err := ch.take(sel)
	if err != nil {
		return nil, nil, err
	}
	for _, s := range before {
		e := s.Entry
		edit(&e)
		s, err := ch.edit(s, e)
		if err != nil {
			return nil, nil, err
		}
		after = append(after, s)
	}
	return after, ch.overridden, r.commitOwn(ch)
}

// RemoveServices removes what sel names and returns it; IANA's registry answers again. ErrNotFound where the host has no
// such entry.
func (r *Registry) RemoveServices(ctx context.Context, c Caller, sel ServiceSelector) ([]*OwnService, error) {
	if err := r.cfg.Policy.EditServices(c, "remove the service "+sel.String()); err != nil {
		return nil, err
	}
	ch, unlock, err := r.changeOwn(ctx, c, false)
	if err != nil {
		return nil, err
	}
	defer unlock()
	removed, err := ch.take(sel)
	if err != nil {
		return nil, err
	}
	for _, s := range removed {
		ch.cm.del = append(ch.cm.del, s.Key())
		ch.event(EventServiceRemoved, s)
	}
	return removed, r.commitOwn(ch)
}

// An ownChange is a change of the host's own entries on its way.
type ownChange struct {
	services   *Services
	own        []*OwnService // as they will be
	keys       map[Key]*OwnService
	override   bool
	overridden []string
	cm         *commit
}

// changeOwn begins a change; unlock ends it.
func (r *Registry) changeOwn(ctx context.Context, c Caller, override bool) (ch *ownChange, unlock func(), err error) {
	if unlock, err = r.lockServices(ctx); err != nil {
		return nil, nil, err
	}
	now := r.Services()
	ch = &ownChange{
		services: now, own: slices.Clone(now.Own), keys: map[Key]*OwnService{}, override: override,
		cm: &commit{by: c.Principal()},
	}
	for _, s := range ch.own {
		ch.keys[s.Key()] = s
	}
	return ch, unlock, nil
}

// commitOwn makes a change durable and then seen, if there is one.
func (r *Registry) commitOwn(ch *ownChange) error {
	if len(ch.cm.events) == 0 {
		return nil
	}
	if now, before := textOf(ch.own), textOf(ch.services.Own); now > max(maxAllText, before) {
		return failed(ErrExhausted, "the host's own entries would have %d bytes of text in all; allowed are %d: remove some, or say less", now, maxAllText)
	}
	// An entry may be where another one has left.
	ch.cm.del = slices.DeleteFunc(ch.cm.del, func(k Key) bool { return ch.keys[k] != nil })
	next, err := ch.services.withOwn(ch.own)
	if err != nil {
		return invalid("services", "of the host: %v", err)
	}
	next.Prepare()
	ch.cm.apply = append(ch.cm.apply, func() { r.services.Store(next) })
	return r.commit(ch.cm)
}

// take takes out what sel names.
func (ch *ownChange) take(sel ServiceSelector) (taken []*OwnService, err error) {
	named := 0
	ch.own = slices.DeleteFunc(ch.own, func(s *OwnService) bool {
		if strings.EqualFold(sel.Name, s.Entry.Name) {
			named++
		}
		if !sel.match(s.Entry) {
			return false
		}
		taken = append(taken, s)
		delete(ch.keys, s.Key())
		return true
	})
	switch {
	case len(taken) > 0:
		return taken, nil
	case named > 0:
		return nil, failed(ErrNotFound, "%v is not an entry of the host's own, though others of that name are; list them", sel)
	}
	return nil, failed(ErrNotFound, "%v is not an entry of the host's own in the service registry", sel)
}

// add puts an entry in, unless it is there already.
func (ch *ownChange) add(e ianadb.Entry) (*OwnService, error) {
	if err := checkEntry(&e); err != nil {
		return nil, err
	}
	if s := ch.keys[serviceKey(e)]; s != nil && s.Entry == e {
		return s, nil
	}
	if err := ch.vacant(e); err != nil {
		return nil, err
	}
	return ch.place(e, EventServiceAdded)
}

// edit puts an entry in place of one that was taken out.
func (ch *ownChange) edit(s *OwnService, e ianadb.Entry) (*OwnService, error) {
	if err := checkEntry(&e); err != nil {
		return nil, err
	}
	if err := ch.vacant(e); err != nil { // two that were taken out may want one place
		return nil, err
	}
	switch {
	case e == s.Entry:
		ch.own = append(ch.own, s)
		ch.keys[s.Key()] = s
		return s, nil
	case serviceKey(e) == s.Key(): // what it says is new, and not where
		return ch.put(e, EventServiceEdited), nil
	}
	ch.cm.del = append(ch.cm.del, s.Key())
	return ch.place(e, EventServiceEdited)
}

// vacant refuses an entry where one of the host's own is already: a name has one for a protocol and ports.
func (ch *ownChange) vacant(e ianadb.Entry) error {
	if s := ch.keys[serviceKey(e)]; s != nil {
		return failed(ErrTaken, "%s is an entry of the host's own already; edit that", entryText(s.Entry))
	}
	return nil
}

// place puts an entry where it is vacant, if nothing clashes or that is to be overridden.
func (ch *ownChange) place(e ianadb.Entry, why EventType) (*OwnService, error) {
	if len(ch.own) == maxOwn {
		return nil, failed(ErrExhausted, "the host has %d entries of its own in the service registry, and no more are allowed; remove some", maxOwn)
	}
	clashes := append(clashesWithIANA(ch.services.IANA, e), clashesWithOwn(ch.own, e)...)
	if len(clashes) > 0 && !ch.override {
		return nil, &ClashError{Entry: entryText(e), Clashes: clashes}
	}
	ch.overridden = append(ch.overridden, clashes...)
	return ch.put(e, why), nil
}

func (ch *ownChange) put(e ianadb.Entry, why EventType) *OwnService {
	s := &OwnService{Entry: e, By: ch.cm.by}
	ch.own = append(ch.own, s)
	ch.keys[s.Key()] = s
	ch.cm.put = append(ch.cm.put, s)
	ch.event(why, s)
	return s
}

func (ch *ownChange) event(typ EventType, s *OwnService) {
	ch.cm.events = append(ch.cm.events, Event{Type: typ, Service: s, Caller: ch.cm.by})
}
