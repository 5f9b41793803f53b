package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/portd/portd/internal/ianadb"
)

// A ReserveRequest asks for a reservation.
type ReserveRequest struct {
	Spec      Spec
	Name      string // empty: none
	Labels    map[string]string
	Lease     string     // end with this lease of the caller's; empty: none
	NewLease  *LeaseSpec // or with a new one
	RequestID string     // empty: none
}

// Limits of one request.
const (
	maxEndpoints  = 256
	maxPorts      = 1 << 16 // of all endpoints
	maxChosen     = 4096    // contiguous ports of portd's choice
	maxLabels     = 64
	maxLabelBytes = 1024
)

// Reserved is the answer to a ReserveRequest.
type Reserved struct {
	*Reservation
	Existed bool         // it was there already: the same owner had reserved the same under the same name
	Passed  []PassedOver // ports of portd's choice that were to be tried first and could not be had
}

// Reserve takes everything that is asked for or nothing. The errors are all those of this package.
func (r *Registry) Reserve(ctx context.Context, c Caller, req ReserveRequest) (out Reserved, err error) {
	if err := checkSize(req.Spec); err != nil {
		return Reserved{}, err
	}
	req.Spec.Endpoints = slices.Clone(req.Spec.Endpoints)
	leave, err := r.visitAll(c, req.Spec.Endpoints)
	if err != nil {
		return Reserved{}, err
	}
	defer leave()
	// What was answered is not checked again: a service may have moved since, or be gone.
	answered, err := r.once(ctx, c, "Reserve", req.RequestID, &req, func(rec *Request) error {
		named, err := r.checkReserve(c, &req)
		if err == nil {
			err = r.reserve(ctx, c, &req, named, rec, &out)
		}
		return err
	})
	if answered != nil {
		return Reserved{Reservation: answered.Result, Passed: answered.Passed}, err
	}
	return out, err
}

// checkReserve refuses what makes no sense or is denied. It returns the ports that each endpoint spec names, or prefers, now:
// to ask the service registry again could give others, which were not checked.
func (r *Registry) checkReserve(c Caller, req *ReserveRequest) ([]PortRange, error) {
	if req.Name != "" {
		if err := ValidateName(req.Name); err != nil {
			return nil, err
		}
	}
	if err := checkLabels(req.Labels); err != nil {
		return nil, err
	}
	if req.Lease != "" && req.NewLease != nil {
		return nil, invalid("lease_id", "a reservation has one lease: give lease_id or new_lease")
	}
	if l := req.NewLease; l != nil {
		if err := l.check("new_lease"); err != nil {
			return nil, err
		}
	}
	if req.Spec.Mode == Recorded && req.Spec.Options != (BindOptions{}) {
		return nil, invalid("spec.bind_options", "are for held endpoints; a recorded one is bound by its program")
	}
	named := make([]PortRange, len(req.Spec.Endpoints))
	for i, s := range req.Spec.Endpoints {
		var err error
		if s.Path != "" && req.Spec.Mode == Recorded {
			return nil, invalid("spec.mode", "a path is held, or is its program's affair: portd records ports only")
		}
		if named[i], err = r.exact(s); err != nil {
			return nil, err
		}
		if err := r.checkSpec(c, s, named[i], req.Spec.Options); err != nil {
			return nil, err
		}
		if s.Any != nil {
			if named[i], err = r.preferred(s); err != nil {
				return nil, err
			}
		}
	}
	return named, nil
}

// checkSize refuses what is nothing, or too much to do anything for.
func checkSize(spec Spec) error {
	if len(spec.Endpoints) == 0 {
		return invalid("spec.endpoints", "is empty; at least one is wanted")
	}
	n, ports := 0, 0
	for _, s := range spec.Endpoints {
		each := max(len(s.Protos), 1) * max(len(s.Addrs), 1)
		n += each
		if s.Any != nil {
			ports += each * min(max(s.Any.Count, 1), maxChosen) // more of them checkSpec refuses
		} else {
			ports += each * max(int(s.Exact.Last)-int(s.Exact.First)+1, 1)
		}
	}
	if n > maxEndpoints {
		return invalid("spec.endpoints", "are %d, protocols times addresses; allowed are %d", n, maxEndpoints)
	}
	if ports > maxPorts {
		return invalid("spec.endpoints", "have %d ports in all; allowed are %d in one reservation", ports, maxPorts)
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	size := 0
	for k, v := range labels {
		if k == "" || len(k) > 63 || !plain(k) {
			return invalid("labels", "%q is not a key; allowed are 1 to 63 printable ASCII characters without blanks", k)
		}
		if !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl) {
			return invalid("labels", "the value of %q has control characters, or is not UTF-8", k)
		}
		size += len(k) + len(v)
	}
	if len(labels) > maxLabels || size > maxLabelBytes {
		return invalid("labels", "too many; allowed are %d with %d bytes in all", maxLabels, maxLabelBytes)
	}
	return nil
}

// checkSpec refuses what makes no sense or is denied. The ports that s names are to be tried, unless it leaves them open.
func (r *Registry) checkSpec(c Caller, s EndpointSpec, try PortRange, opt BindOptions) error {
	if len(s.Protos) == 0 {
		return invalid("spec.endpoints.protocols", "is empty; at least one is wanted")
	}
	if s.Path != "" || slices.Contains(s.Protos, Unix) {
		return checkPathSpec(s, opt) // the file system says who may
	}
	if opt.FileMode != 0 {
		return invalid("spec.bind_options.file_mode", "is for unix endpoints; %s has no file", protoList(s.Protos))
	}
	if s.V6Only && (len(s.Addrs) != 1 || s.Addrs[0] != AnyAddr) {
		return invalid("spec.endpoints.v6_only", "goes with the address :: and no other")
	}
	if s.Any != nil {
		if try != (PortRange{}) {
			return invalid("spec.endpoints", "asks for exact ports and for any; one of the two is wanted")
		}
		if s.Any.Count < 0 || s.Any.Count > maxChosen {
			return invalid("spec.endpoints.any.count", "%d is not allowed; portd chooses up to %d contiguous ports", s.Any.Count, maxChosen)
		}
		if try = s.Any.Within; try == (PortRange{}) {
			try = PortRange{1, 65535}
		}
		if n := int(try.Last) - int(try.First) + 1; try.Last >= try.First && s.Any.Count > n {
			return invalid("spec.endpoints.any.count", "%d contiguous ports do not fit into %d-%d", s.Any.Count, try.First, try.Last)
		}
	}
	policy := r.policyIn(c, s.Netns)
	var seen []Endpoint
	for _, e := range s.endpoints() {
		e = e.ports(try)
		if err := e.validate(); err != nil {
			return err
		}
		if opt.MPTCP && e.Proto != TCP {
			return invalid("spec.bind_options.mptcp", "is for tcp, not for %v", e.Proto)
		}
		if err := opt.checkGroup(e, s.Any); err != nil {
			return err
		}
		if s.Any == nil || s.Any.poolName() == "" { // of a pool, choosable leaves out what is denied
			if err := policy.Reserve(c, e, opt); err != nil {
				return err
			}
		}
		for _, o := range seen {
			if e.Overlaps(o) {
				return invalid("spec.endpoints", "%v and %v overlap", o, e)
			}
		}
		seen = append(seen, e)
	}
	if s.Any == nil {
		return nil
	}
	return r.checkChoosable(c, s, opt)
}

// checkChoosable is apart from checkSpec, and stays so: a set of ports is 8 KB of stack, for which every call's would have to grow.
//
//go:noinline
func (r *Registry) checkChoosable(c Caller, s EndpointSpec, opt BindOptions) error {
	_, _, err := r.choosable(c, s, opt)
	return err
}

// exact is the ports that a spec names, be it by a service name.
func (r *Registry) exact(s EndpointSpec) (PortRange, error) {
	if s.Service == "" {
		return s.Exact, nil
	}
	if s.Exact != (PortRange{}) {
		return s.Exact, invalid("spec.endpoints", "asks for exact ports and for a service; one of the two is wanted")
	}
	port, err := r.servicePort(s.Service, s.Protos)
	return PortRange{port, port}, err
}

func rangesText(all []ianadb.Range) string {
	texts := make([]string, len(all))
	for i, r := range all {
		texts[i] = portsText(r.First, r.Last)
	}
	return strings.Join(texts, ", ")
}

// servicePort is the one port that the host or IANA gives a service for all of the protocols.
func (r *Registry) servicePort(name string, protos []Protocol) (uint16, error) {
	var port uint16
	services := r.Services()
	for _, p := range protos {
		assigned, known := ianaProtocol(p)
		var ports []ianadb.Range
		if known {
			ports = services.Ports(name, assigned)
		}
		switch {
		case len(ports) == 0:
			return 0, failed(ErrNotFound, "the service registry has no port for %q over %v%s", name, p, nearText(services, name))
		case len(ports) > 1 || ports[0].First != ports[0].Last:
			return 0, invalid("spec.endpoints.service", "%q has several ports for %v (%s); say which by its number", name, p, rangesText(ports))
		case port != 0 && ports[0].First != port:
			return 0, invalid("spec.endpoints.service", "%q has different ports for these protocols (%d and %d); say which", name, port, ports[0].First)
		}
		port = ports[0].First
	}
	return port, nil
}

// nearText offers the names that are like one that the service registry does not have.
func nearText(s *Services, name string) string {
	for range s.ByName(name, ianadb.AnyProtocol) {
		return "" // it has it, without a port there
	}
	near := s.Near(name)
	if len(near) == 0 {
		return ""
	}
	return "; near: " + strings.Join(near, ", ")
}

// ianaProtocol is p as the IANA registry knows it. UDP-Lite has the services of UDP (RFC 3828 section 3.1).
func ianaProtocol(p Protocol) (ianadb.Protocol, bool) {
	if p == UDPLite {
		p = UDP
	}
	return ianadb.ParseProtocol(p.String())
}

// reserve claims, binds and commits, and fills in what is to be answered; named are the ports that each endpoint spec names or prefers, rec
// is nil or the request's record. What is large goes by pointer from here down to the binder: the stack of the call's goroutine, 8 KB in
// gRPC's own hands, would have to grow for each reservation.
func (r *Registry) reserve(ctx context.Context, c Caller, req *ReserveRequest, named []PortRange, rec *Request, out *Reserved) error {
	res := &Reservation{
		ID: newID("rsv_"), Name: req.Name, Labels: maps.Clone(req.Labels),
		Owner: c.Principal(), Spec: req.Spec, Lease: req.Lease,
	}
	if slices.ContainsFunc(req.Spec.Endpoints, func(s EndpointSpec) bool { return s.Path != "" }) {
		res.Group = &c.GID
	}
	if req.Spec.Mode == Recorded {
		defer func() { r.letGo(res.endpoints()...) }()
	}
	var passed []PassedOver
	old, err := r.establish(ctx, c, res, req.NewLease, rec, func(e *entry, _ *Event) (err error) {
		if err := r.takeExact(ctx, c, e, res, named); err != nil {
			return err
		}
		if passed, err = r.takeAny(ctx, c, e, res, named); err == nil && rec != nil {
			rec.Passed = passed
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case old != nil:
		*out = Reserved{Reservation: old, Existed: true}
	default:
		*out = Reserved{Reservation: res, Passed: passed}
	}
	return nil
}

// establish makes a reservation of res, with a lease of its own where one is wanted, once take has taken its endpoints: all
// of it or nothing. take may say more in the event that tells of it. Where the same is there already under that name, it
// returns that and takes nothing.
func (r *Registry) establish(ctx context.Context, c Caller, res *Reservation, lasts *LeaseSpec, rec *Request,
	take func(*entry, *Event) error,
) (old *Reservation, err error) {
	var fresh *lease
	if lasts != nil {
		if fresh, err = r.makeLease(c, *lasts); err != nil {
			return nil, err
		}
		fresh.Single = true
		res.Lease = fresh.ID
	}
	e := &entry{busy: make(chan struct{})}
	if old, err = r.enter(ctx, c, e, res, fresh); err != nil || old != nil {
		return old, err
	}
	defer r.free(e)
	defer func() {
		if err != nil {
			r.undo(e, res)
		}
	}()
	if fresh != nil {
		if err := r.watchProcess(fresh); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				r.stopWatching(fresh)
			}
		}()
	}
	ev := Event{Type: EventReserved, Reservation: res, Caller: c.Principal()}
	if err := take(e, &ev); err != nil {
		return nil, err
	}
	cm := &commit{by: c.Principal()}
	if fresh != nil {
		r.create(cm, fresh)
	}
	cm.put = append(cm.put, res)
	cm.rememberNetns(r, res)
	cm.events = append(cm.events, ev)
	cm.apply = append(cm.apply, func() { r.insert(e, res) })
	if rec != nil {
		rec.Result = res
	}
	cm.remember(rec)
	return nil, r.commit(cm)
}

// enter puts a reservation to be into the table, busy and without endpoints. It returns the one that is there
// already under that name, if it is the same; where that has the like of the fresh lease, it is renewed.
func (r *Registry) enter(ctx context.Context, c Caller, e *entry, res *Reservation, fresh *lease) (*Reservation, error) {
	for {
		r.mu.Lock()
		var busy chan struct{}
		other := r.names[res.Name]
		switch {
		case res.Name == "" || other == nil:
			other = nil
		case other.busy != nil:
			busy = other.busy
		}
		if busy == nil {
			defer r.mu.Unlock()
			if other != nil {
				o := other.res
				if o.Owner == res.Owner && same(o.Spec, res.Spec) && r.sameLease(o.Lease, res.Lease, fresh) {
					return o, nil
				}
				return nil, &TakenError{Name: res.Name, By: []*Reservation{other.res}}
			}
			switch {
			case fresh != nil:
				fresh.carries[e] = true
			case res.Lease != "":
				l := r.leases[res.Lease]
				if l == nil || l.ending || l.Owner != c.Principal() {
					return nil, failed(ErrNotFound, "lease %s: you have no such lease, or it has ended", res.Lease)
				}
				l.carries[e] = true
			}
			r.entries[res.ID] = e
			if res.Name != "" {
				r.names[res.Name] = e
			}
			return nil, nil
		}
		r.mu.Unlock()
		if err := wait(ctx, busy); err != nil {
			return nil, err
		}
	}
}

// sameLease says whether a reservation with the lease has, if it were reserved again, all that is wanted: that lease, or
// one as the fresh one would be, which is then renewed. mu is held.
func (r *Registry) sameLease(has, want string, fresh *lease) bool {
	if fresh == nil {
		return has == want
	}
	l := r.leases[has]
	if l == nil || !l.Single || l.ending || l.Spec != fresh.Spec || l.Start != fresh.Start {
		return false
	}
	if l.Spec.Kind == TTLLease {
		r.schedule(l, l.Spec.TTL)
	}
	return true
}

// same compares specs by what they say.
func same(a, b Spec) bool {
	x, errx := json.Marshal(a)
	y, erry := json.Marshal(b)
	return errx == nil && erry == nil && string(x) == string(y)
}

// takeExact claims and binds the endpoints whose ports the spec names, and adds them to res. They are claimed in one
// step: whoever waits for others' claims has none of its own, so that nobody waits in a circle.
func (r *Registry) takeExact(ctx context.Context, c Caller, e *entry, res *Reservation, named []PortRange) error {
	if err := r.claimExact(ctx, c, e, res, named); err != nil {
		return err
	}
	if res.Spec.Mode == Recorded {
		return r.cfg.LocalPorts.Settle(ctx)
	}
	for i := range res.Assigned {
		if err := r.bind(ctx, c, res, i, &res.Assigned[i].Endpoint, false); err != nil {
			return err
		}
	}
	return nil
}

// claimExact is the part of takeExact that asks no kernel. It has a frame of its own, which is gone when the kernel is asked.
//
//go:noinline
func (r *Registry) claimExact(ctx context.Context, c Caller, e *entry, res *Reservation, named []PortRange) error {
	var eps []Endpoint
	for i, s := range res.Spec.Endpoints {
		if s.Any == nil {
			eps = append(eps, r.endpoints(s, named[i])...)
		}
	}
	if err := r.claim(ctx, e, eps); err != nil {
		return err
	}
	for _, ep := range eps {
		res.Assigned = append(res.Assigned, Assigned{Endpoint: ep})
	}
	r.keepRecorded(res.Spec.Mode, eps)
	return r.keptFrom(c, eps, true)
}

// endpoints are a spec's with their ports, as this kernel can have them.
func (r *Registry) endpoints(s EndpointSpec, ports PortRange) []Endpoint {
	eps := s.endpoints()
	for i := range eps {
		eps[i] = eps[i].ports(ports)
		if eps[i].Dual() && !r.cfg.Binder.HasIPv6() {
			eps[i].Addr = ipv4Any
		}
	}
	return eps
}

// claim enters endpoints into the table, all or none, waiting for those who are just letting go of them.
func (r *Registry) claim(ctx context.Context, e *entry, eps []Endpoint) error {
	for {
		busy, err := r.tryClaim(e, eps)
		if busy == nil || err != nil {
			return err
		}
		if err := wait(ctx, busy); err != nil {
			return err
		}
	}
}

// tryClaim is one attempt: done, refused, or to be repeated when busy is closed.
func (r *Registry) tryClaim(e *entry, eps []Endpoint) (busy chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, ep := range eps {
		for _, o := range eps[:i] {
			if ep.Overlaps(o) {
				return nil, invalid("spec.endpoints", "%v and %v overlap", o, ep)
			}
		}
		var by []*Reservation
		for _, o := range r.claims.overlapping(ep) {
			switch {
			case o.busy != nil:
				busy = o.busy
			default:
				by = append(by, o.res)
			}
		}
		if len(by) > 0 {
			return nil, &TakenError{Want: ep, By: by}
		}
	}
	if busy != nil {
		return busy, nil
	}
	for _, ep := range eps {
		r.claims.add(ep, e)
	}
	return nil, nil
}

// bind takes one claimed endpoint from the kernel, and names who has it where it cannot.
func (r *Registry) bind(ctx context.Context, c Caller, res *Reservation, index int, ep *Endpoint, fresh bool) error {
	err := r.cfg.Binder.Bind(ctx, Bind{Key: SocketKey{res.ID, index}, Endpoint: *ep, Options: res.Spec.Options, Fresh: fresh, As: As{UID: c.UID, Caller: &c}})
	if fresh || !errors.Is(err, ErrTaken) {
		return err
	}
	return r.explain(ctx, c, *ep, err)
}

// explain adds to the kernel's refusal whose socket stands in the way.
func (r *Registry) explain(ctx context.Context, c Caller, ep Endpoint, refusal error) error {
	if te := (*TakenError)(nil); errors.As(refusal, &te) && (len(te.Holders) > 0 || te.Why != "") {
		te.Holders = r.showing(c, te.Holders)
		return te
	}
	holders, err := r.Holders(ctx, c, ep)
	if err != nil {
		r.cfg.Log.Warn("cannot see who has a port", "endpoint", ep, "err", err)
	}
	return &TakenError{Want: ep, Holders: holders}
}

// undo takes back what a reservation that came to nothing had claimed and bound.
func (r *Registry) undo(e *entry, res *Reservation) {
	for i := range res.Assigned {
		if res.Spec.Mode == Recorded {
			break
		}
		if err := r.cfg.Binder.Release(SocketKey{res.ID, i}); err != nil {
			r.cfg.Log.Error("cannot release a port", "endpoint", res.Assigned[i].Endpoint, "err", err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(e, res)
}

// wallTime is for messages and records; whatever counts uses boot time.
func wallTime(d time.Duration) time.Time { return time.Now().UTC().Add(d) }

func (r *Reservation) String() string { return fmt.Sprintf("%s %s", r.ID, r.Endpoints()) }
