package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// An AdoptRequest asks for the listening socket of a program that runs.
type AdoptRequest struct {
	// Endpoint is what the program listens on: one exact port of TCP, or a service. Without an address and a device it is
	// whichever the program has.
	Endpoint EndpointSpec
	PID      int32 // as portd sees it
	Name     string
	Labels   map[string]string
	Lease    string
	NewLease *LeaseSpec
	// RequestID makes a repeated call give the first one's answer; empty: none.
	RequestID string
}

// Adopted is a reservation of an adopted socket.
type Adopted struct {
	Reservation *Reservation
	// AlsoOpenIn are the programs that have the socket too, as far as the caller may see them.
	AlsoOpenIn []Process
}

// An Adopt asks a Binder for a duplicate of a listening socket.
type Adopt struct {
	Key      SocketKey
	PID      int32
	Endpoint Endpoint // one port
	AnyAddr  bool     // on whatever address and device it is
	// May says whether the program is one that the socket may be taken from. It is asked before and after.
	May func(Program) error
}

// An Adoption is a socket that a Binder has adopted.
type Adoption struct {
	Endpoint Endpoint
	Bind     BindOptions   // as it was bound
	Listen   ListenOptions // as it listens
	From     Process
	Others   []Process // that have it too, From among them
}

// A Program is a process that has what is to be adopted.
type Program struct {
	Process
	GID uint32 // effective
	// Changed says that its real, effective and saved ids are not the same, Privileged that it has capabilities.
	Changed, Privileged bool
	// Scope is Yama's (kernel.yama.ptrace_scope), 0 where everybody may attach to what is his own.
	Scope int
}

// A NotListeningError says that a process has no such socket, and who has. It is an ErrNotFound.
type NotListeningError struct {
	PID     int32
	Want    Endpoint
	Holders []Holder // that listen there
}

func (e *NotListeningError) Is(target error) bool { return target == ErrNotFound }

func (e *NotListeningError) Error() string {
	text := fmt.Sprintf("process %d does not listen on %v", e.PID, e.Want)
	if len(e.Holders) == 0 {
		return text + ", nor does any other that portd sees"
	}
	return text + ": " + strings.Join(few(holderTexts(e.Holders), "and %d more sockets"), "; ")
}

func holderTexts(holders []Holder) (texts []string) {
	for _, h := range holders {
		texts = append(texts, h.String())
	}
	return texts
}

// Adopt takes a duplicate of a program's listening socket and makes it a reservation of the caller's that listens: the program
// may go on or stop, the port stays. A reservation of the caller's that has lost the port, and nothing else being said, has it
// again by that. ErrDenied where the caller could not do the same himself, ErrUnsupported where portd may
// not or the socket is of a kind that cannot be owned, ErrNotFound where the process does not run or does not listen there.
func (r *Registry) Adopt(ctx context.Context, c Caller, req AdoptRequest) (out Adopted, err error) {
	leave, err := r.visit(c, &req.Endpoint.Netns)
	if err != nil {
		return out, err
	}
	defer leave()
	answered, err := r.once(ctx, c, "Adopt", req.RequestID, req, func(rec *Request) error {
		want, err := r.checkAdopt(c, req)
		if err != nil {
			return err
		}
		switch back, err := r.bringBack(ctx, c, req, want, rec); {
		case err != nil:
			return err
		case back != nil:
			out = *back
			return nil
		}
		out, err = r.adopt(ctx, c, req, want, rec)
		return err
	})
	if answered != nil {
		return Adopted{Reservation: answered.Result}, err
	}
	return out, err
}

// checkAdopt refuses what makes no sense or is denied, and says what to look for.
func (r *Registry) checkAdopt(c Caller, req AdoptRequest) (want Adopt, err error) {
	s := req.Endpoint
	switch {
	case req.PID <= 0:
		return want, invalid("pid", "%d is not a pid", req.PID)
	case s.Any != nil:
		return want, invalid("endpoint", "says no port; the one that the program listens on is wanted")
	case s.Path != "":
		return want, invalid("endpoint", "%s is a path; portd adopts sockets of ports only", s.Path)
	case len(s.Protos) != 1 || len(s.Addrs) > 1 || s.Exact.First != s.Exact.Last:
		return want, invalid("endpoint", "one socket is adopted at a time: one protocol, one address, one port")
	case !s.Protos[0].Streams():
		return want, &UnsupportedError{
			"adopt " + s.Protos[0].String(), "it has no connections to wait for a successor, and portd and the program would take each " +
				"other's datagrams; stop the program, and start it by portctl run", "NOT_A_STREAM",
		}
	case s.Protos[0] != TCP:
		return want, &UnsupportedError{"adopt " + s.Protos[0].String(), "the kernel is not asked for its sockets (sock_diag); tcp only", "UNSUPPORTED"}
	}
	if err := r.samePIDs(c, req.PID); err != nil {
		return want, err
	}
	named, err := r.checkReserve(c, &ReserveRequest{
		Spec: Spec{Endpoints: []EndpointSpec{s}}, Name: req.Name, Labels: req.Labels, Lease: req.Lease, NewLease: req.NewLease,
	})
	if err != nil {
		return want, err
	}
	want.PID = req.PID
	want.Endpoint = r.endpoints(s, named[0])[0]
	want.AnyAddr = len(s.Addrs) == 0 && s.Device == ""
	want.May = func(p Program) error { return r.cfg.Policy.Adopt(c, p, want.Endpoint) }
	return want, nil
}

// samePIDs refuses callers to whom a pid means another process than to portd.
func (r *Registry) samePIDs(c Caller, pid int32) error {
	if r.cfg.Processes == nil {
		return nil
	}
	_, _, err := r.cfg.Processes.Find(c, pid)
	if other := (*UnsupportedError)(nil); errors.As(err, &other) {
		return &UnsupportedError{
			fmt.Sprintf("adopt from process %d", pid),
			"you are in another pid namespace than portd, where your pids mean other processes; adopt it from outside, by the pid that it has there", other.Code,
		}
	}
	return nil // whether it runs, and has the socket, shows when it is looked for
}

func (r *Registry) adopt(ctx context.Context, c Caller, req AdoptRequest, want Adopt, rec *Request) (_ Adopted, err error) {
	res := &Reservation{
		ID: newID("rsv_"), Name: req.Name, Labels: maps.Clone(req.Labels), Owner: c.Principal(), Lease: req.Lease,
	}
	want.Key = SocketKey{res.ID, 0}
	got, err := r.cfg.Binder.Adopt(ctx, want)
	if err != nil {
		return Adopted{}, r.whyNot(ctx, c, want, err)
	}
	defer func() {
		if err == nil {
			return
		}
		if rerr := r.cfg.Binder.Release(want.Key); rerr != nil {
			r.cfg.Log.Error("cannot give a socket back", "endpoint", got.Endpoint, "err", rerr)
		}
	}()
	if err := r.policyIn(c, got.Endpoint.Netns).Reserve(c, got.Endpoint, got.Bind); err != nil {
		return Adopted{}, err
	}
	res.Spec = Spec{Endpoints: []EndpointSpec{specOf(got.Endpoint)}, Options: got.Bind}
	old, err := r.establish(ctx, c, res, req.NewLease, rec, func(e *entry, ev *Event) error {
		ev.Reason = fmt.Sprintf("adopted from %s (pid %d)", got.From.Command, got.From.PID)
		if err := r.claim(ctx, e, []Endpoint{got.Endpoint}); err != nil {
			return err
		}
		res.Assigned = []Assigned{{Endpoint: got.Endpoint, Listen: &got.Listen}}
		return nil
	})
	switch {
	case err != nil:
		return Adopted{}, err
	case old != nil: // it cannot have this socket, though it may have had the port
		return Adopted{}, &TakenError{Name: req.Name, By: []*Reservation{old}}
	}
	also := slices.DeleteFunc(got.Others, func(p Process) bool { return !r.cfg.Policy.SeeProcess(c, p) })
	return Adopted{Reservation: res, AlsoOpenIn: also}, nil
}

// whyNot adds to a Binder's refusal what only the Registry knows.
func (r *Registry) whyNot(ctx context.Context, c Caller, want Adopt, refusal error) error {
	var (
		taken  *TakenError
		absent *NotListeningError
	)
	switch {
	case errors.As(refusal, &taken) && len(taken.By) == 0: // it is portd's already
		r.mu.RLock()
		defer r.mu.RUnlock()
		for _, e := range r.claims.overlapping(taken.Want) {
			if e.res != nil {
				taken.By = append(taken.By, e.res)
			}
		}
	case errors.As(refusal, &absent):
		holders, err := r.Holders(ctx, c, want.Endpoint)
		if err != nil {
			r.cfg.Log.Warn("cannot see who has a port", "endpoint", want.Endpoint, "err", err)
		}
		absent.Holders = slices.DeleteFunc(holders, func(h Holder) bool { return h.State != SocketListening })
	}
	return refusal
}

// specOf asks for just this endpoint.
func specOf(e Endpoint) EndpointSpec {
	s := EndpointSpec{Netns: e.Netns, Protos: []Protocol{e.Proto}, V6Only: e.V6Only, Device: e.Device, Exact: PortRange{e.First, e.Last}}
	if !e.Dual() {
		s.Addrs = []netip.Addr{e.Addr}
	}
	return s
}
