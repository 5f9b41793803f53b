package registry

import (
	"cmp"
	"errors"
	"slices"
	"strings"
)

// UnknownNetns is the Netns of a caller who lives in another network namespace, of which portd cannot tell which.
const UnknownNetns = "?"

// NobodyKnows begins the sentence on what is hidden where portd could not look for who has a port at all.
const NobodyKnows = "who has it is not known"

// Namespaces are the network namespaces of this host that are not portd's own. Those that are kept the Binder can enter by
// their names, which nothing but Drop takes from them.
type Namespaces interface {
	// Name is how endpoints spell the namespace that c means by a text: a name of ip-netns(8), a process by its number as c has
	// it, or an inode number as lsns(8) has it. It is HostNetns for portd's own. ErrNotFound where there is none.
	Name(c Caller, text string) (string, error)
	// Keep finds that namespace and keeps it until Drop, and says who owns the user namespace that it belongs to. Of portd's
	// own there is the name only, and nothing to drop.
	Keep(c Caller, text string) (n Namespace, owner uint32, err error)
	// Restore keeps one that was known before, under the name that it had then. ErrNotFound where it is not there, or is
	// another by now.
	Restore(n Namespace) (now Namespace, owner uint32, err error)
	// Hold keeps one more time what is kept already.
	Hold(name string)
	// Drop ends a Keep, a Restore or a Hold.
	Drop(name string)
	// Gone are those of the kept ones in which no process lives any more and that no file leads to. It is to be asked again and
	// again: what it has not seen once may only have moved.
	Gone(names []string) []string
}

// A netnsUse is what portd has in one network namespace; Registry.mu guards it.
type netnsUse struct {
	rec     *Namespace
	owner   uint32          // of the user namespace that it belongs to
	entries map[*entry]bool // reservations in it
	visits  int             // calls that are at work in it
	held    bool            // kept for the entries
	stored  bool            // the store may have rec
	missing bool            // not there since the last boot
}

// visit fills in an empty network namespace, which is the caller's own, gives any other the name that endpoints have of it,
// and keeps it until leave is called, if c may do something there.
func (r *Registry) visit(c Caller, ns *string) (leave func(), err error) {
	nothing := func() {}
	*ns = cmp.Or(*ns, c.home())
	if *ns == HostNetns {
		return nothing, r.cfg.Policy.Enter(c, HostNetns, 0)
	}
	if err := r.knowsNetns(*ns); err != nil {
		return nothing, err
	}
	n, owner, err := r.cfg.Netns.Keep(c, *ns)
	if err != nil {
		return nothing, err
	}
	*ns = n.Name
	err = r.cfg.Policy.Enter(c, n.Name, owner)
	if n.Name == HostNetns {
		return nothing, err
	}
	if err != nil {
		r.cfg.Netns.Drop(n.Name)
		return nothing, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.netnsLocked(n.Name)
	u.rec, u.owner = &n, owner
	u.visits++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		u.visits--
		if u.visits == 0 && len(u.entries) == 0 && !u.stored {
			delete(r.netns, n.Name)
		}
		r.cfg.Netns.Drop(n.Name)
	}, nil
}

// visitAll visits the network namespaces of several endpoint specs, or none.
func (r *Registry) visitAll(c Caller, specs []EndpointSpec) (leave func(), err error) {
	var all []func()
	leave = func() {
		for _, f := range all {
			f()
		}
	}
	for i := range specs {
		if ns := &specs[i].Netns; specs[i].Path != "" { // files are in no network namespace
			if *ns = cmp.Or(*ns, HostNetns); *ns != HostNetns {
				return leave, invalid("spec.endpoints.netns", "%s is a path, which is in no network namespace", specs[i].Path)
			}
			continue
		}
		f, err := r.visit(c, &specs[i].Netns)
		if err != nil {
			leave()
			return func() {}, err
		}
		all = append(all, f)
	}
	return leave, nil
}

// nameNetns fills in an empty network namespace and gives any other the name that endpoints have of it, for those who look
// into the table only. One that is not there any more may still have reservations, and keeps its name. mu is not held.
func (r *Registry) nameNetns(c Caller, ns *string) error {
	*ns = cmp.Or(*ns, c.home())
	if *ns == HostNetns {
		return nil
	}
	if err := r.knowsNetns(*ns); err != nil {
		return err
	}
	name, err := r.cfg.Netns.Name(c, *ns)
	switch {
	case err == nil:
		*ns = name
		return nil
	case !errors.Is(err, ErrNotFound):
		return err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.netns[*ns] == nil {
		return err
	}
	return nil
}

func (r *Registry) knowsNetns(ns string) error {
	switch {
	case ns == UnknownNetns:
		return &UnsupportedError{
			"your network namespace", `it is not portd's own, which cannot enter others without CAP_SYS_ADMIN and CAP_NET_ADMIN; ` +
				`say netns "host" for portd's own, if you may`, "MISSING_CAPABILITY",
		}
	case r.cfg.Netns == nil:
		return &UnsupportedError{"network namespace " + ns, "this portd reserves in its own only", "NETNS"}
	case !validNetns(ns):
		return invalid("netns", "%q is not the name of a network namespace", ns)
	}
	return nil
}

// filterNetns gives the network namespace of a filter the name that endpoints have. One that is nowhere selects nothing.
func (r *Registry) filterNetns(c Caller, f *Filter) {
	if f.Netns == "" || f.Netns == HostNetns || r.knowsNetns(f.Netns) != nil {
		return
	}
	if name, err := r.cfg.Netns.Name(c, f.Netns); err == nil {
		f.Netns = name
	}
}

// policyIn is the policy for what c reserves in a network namespace that is being visited: who owns it may do there what
// root may (user_namespaces(7)), and each has unprivileged ports of its own.
func (r *Registry) policyIn(c Caller, ns string) Policy {
	p := r.cfg.Policy
	if ns == HostNetns {
		return p
	}
	p.FirstUnprivileged = r.cfg.Binder.FirstUnprivileged(ns)
	r.mu.RLock()
	defer r.mu.RUnlock()
	if u := r.netns[ns]; u != nil && u.owner == c.UID {
		p.UID = c.UID
	}
	return p
}

// home is the network namespace that a caller lives in.
func (c Caller) home() string { return cmp.Or(c.Netns, HostNetns) }

// netnsLocked is the use of a network namespace, made where there is none.
func (r *Registry) netnsLocked(name string) *netnsUse {
	u := r.netns[name]
	if u == nil {
		u = &netnsUse{rec: &Namespace{Name: name}, entries: map[*entry]bool{}}
		r.netns[name] = u
	}
	return u
}

// others are the network namespaces that a reservation has endpoints in, without portd's own.
func (r *Reservation) others() (names []string) {
	for _, a := range r.Assigned {
		if ns := a.Endpoint.Netns; ns != HostNetns && !slices.Contains(names, ns) {
			names = append(names, ns)
		}
	}
	return names
}

// settle notes that e has endpoints in other network namespaces. mu is held, or nobody else is there.
func (r *Registry) settle(e *entry, res *Reservation) {
	for _, name := range res.others() {
		u := r.netnsLocked(name)
		u.entries[e], u.stored = true, true
		if !u.held && !u.missing && r.cfg.Netns != nil {
			r.cfg.Netns.Hold(name)
			u.held = true
		}
	}
}

// moveOut undoes settle. mu is held.
func (r *Registry) moveOut(e *entry, res *Reservation) {
	for _, name := range res.others() {
		u := r.netnsLocked(name)
		delete(u.entries, e)
		if len(u.entries) == 0 && u.held {
			r.cfg.Netns.Drop(name)
			u.held = false
		}
	}
}

// rememberNetns adds to a commit what there is to know of the network namespaces of a new reservation.
func (c *commit) rememberNetns(r *Registry, res *Reservation) {
	others := res.others()
	if len(others) == 0 {
		return
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, name := range others {
		if u := r.netns[name]; u != nil {
			c.put = append(c.put, u.rec)
		}
	}
}

// forgetNetns adds to a batch that network namespaces are forgotten in which nothing is left. Only the committing goroutine
// calls it: what is reserved there from now on is remembered anew.
func (r *Registry) forgetNetns(batch []*commit) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for name, u := range r.netns {
		rec := u.rec
		if len(u.entries) > 0 || u.visits > 0 || slices.ContainsFunc(batch, func(c *commit) bool {
			return slices.ContainsFunc(c.put, func(p Record) bool { return p.Key() == rec.Key() })
		}) {
			continue
		}
		first := batch[0]
		first.del = append(first.del, rec.Key())
		first.apply = append(first.apply, func() {
			// It may have been visited since, by who will remember it in a later batch.
			if u.stored = false; u.visits == 0 && len(u.entries) == 0 {
				delete(r.netns, name)
			}
		})
	}
}

// anonymous says whether a network namespace is called by its number, which means nothing after the next boot.
func anonymous(name string) bool { return strings.Trim(name, "0123456789") == "" }
