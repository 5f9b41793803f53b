package rpc

import (
	"os/user"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
)

// Domain to proto. Enums whose numbers are the same on both sides are converted by number, which a test holds together.

func fromEndpoint(e registry.Endpoint) *pb.Endpoint {
	if e.Proto == registry.Unix {
		return &pb.Endpoint{Netns: e.Netns, Protocol: fromProtocol(e.Proto), Path: e.Path, Text: e.String()}
	}
	return &pb.Endpoint{
		Netns: e.Netns, Protocol: fromProtocol(e.Proto), Address: e.Addr.String(), V6Only: e.V6Only, Device: e.Device,
		Ports: fromPortRange(registry.PortRange{First: e.First, Last: e.Last}), Text: e.String(),
	}
}

func fromProtocol(p registry.Protocol) pb.Protocol {
	for out, in := range protocols {
		if in == p {
			return out
		}
	}
	return pb.Protocol_PROTOCOL_UNSPECIFIED
}

func fromPortRange(r registry.PortRange) *pb.PortRange {
	return &pb.PortRange{First: uint32(r.First), Last: uint32(r.Last)}
}

// fromReservation has holders as far as they were asked for, those of ports that are lost.
func fromReservation(r *registry.Reservation, holders ...registry.Holder) *pb.Reservation {
	if r == nil {
		return nil
	}
	out := &pb.Reservation{
		Id: r.ID, Name: r.Name, Labels: r.Labels, Owner: string(r.Owner), Spec: fromSpec(r.Spec), LeaseId: r.Lease,
		CreateTime: fromTime(r.Created), CreateRevision: int64(r.CreateRevision), Revision: int64(r.Revision),
	}
	for _, a := range r.Assigned {
		out.Assigned = append(out.Assigned, fromAssigned(a, r.Spec.Mode, holders))
	}
	return out
}

func fromAssigned(a registry.Assigned, m registry.Mode, holders []registry.Holder) *pb.AssignedEndpoint {
	out := &pb.AssignedEndpoint{Endpoint: fromEndpoint(a.Endpoint), State: pb.EndpointState(a.State(m))}
	if a.Listen != nil {
		out.ListenOptions = fromListenOptions(*a.Listen)
	}
	for _, lost := range a.Lost {
		e := &pb.PortException{Ports: fromPortRange(lost), State: pb.EndpointState_ENDPOINT_STATE_LOST}
		ep := a.Endpoint
		ep.First, ep.Last = lost.First, lost.Last
		for _, h := range holders {
			if ep.Overlaps(h.Endpoint) {
				e.Holders = append(e.Holders, fromHolder(h))
			}
		}
		out.Exceptions = append(out.Exceptions, e)
	}
	return out
}

func fromSpec(s registry.Spec) *pb.ReservationSpec {
	out := &pb.ReservationSpec{Mode: pb.Mode_MODE_HELD}
	if s.Mode == registry.Recorded {
		out.Mode = pb.Mode_MODE_RECORDED
	}
	if o := s.Options; o != (registry.BindOptions{}) {
		out.BindOptions = &pb.BindOptions{Freebind: o.Freebind, Transparent: o.Transparent, Mptcp: o.MPTCP, Group: uint32(o.Group), FileMode: uint32(o.FileMode)}
	}
	for _, e := range s.Endpoints {
		out.Endpoints = append(out.Endpoints, fromEndpointSpec(e))
	}
	return out
}

func fromEndpointSpec(s registry.EndpointSpec) *pb.EndpointSpec {
	out := &pb.EndpointSpec{Netns: s.Netns, V6Only: s.V6Only, Device: s.Device}
	for _, p := range s.Protos {
		out.Protocols = append(out.Protocols, fromProtocol(p))
	}
	for _, a := range s.Addrs {
		out.Addresses = append(out.Addresses, a.String())
	}
	switch {
	case s.Any != nil:
		out.Choice = &pb.EndpointSpec_Any{Any: fromAnyPorts(s.Any)}
	case s.Service != "":
		out.Choice = &pb.EndpointSpec_Service{Service: s.Service}
	case s.Path != "":
		out.Choice = &pb.EndpointSpec_Path{Path: s.Path}
	default:
		out.Choice = &pb.EndpointSpec_Exact{Exact: fromPortRange(s.Exact)}
	}
	return out
}

func fromHolder(h registry.Holder) *pb.Holder { return newPeople().holder(h) }

func fromHolders(holders []registry.Holder) []*pb.Holder { return newPeople().holders(holders) }

func fromUse(u registry.Use, me registry.Principal) *pb.PortUse { return newPeople().use(u, me) }

// people are the users and processes in one answer. Tens of thousands of sockets are of a few, and to look for a user's name is
// to read files, or to ask a directory.
type people struct {
	names     map[uint32]string
	processes map[int]*pb.Process
	endings   map[string]registry.Ending // of leases
}

func newPeople() people {
	return people{map[uint32]string{}, map[int]*pb.Process{}, map[string]registry.Ending{}}
}

// name is empty for a user without a name here.
func (who people) name(uid uint32) string {
	name, known := who.names[uid]
	if !known {
		if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
			name = u.Username
		}
		who.names[uid] = name
	}
	return name
}

// process is the same message for each socket of a process that one look has found.
func (who people) process(p registry.Process) *pb.Process {
	out := who.processes[p.PID]
	if out == nil || out.GetUid() != p.UID || out.GetCommand() != p.Command || out.GetCgroup() != p.Cgroup {
		out = &pb.Process{
			Pid: int32(p.PID), Command: p.Command, Uid: &p.UID, User: who.name(p.UID),
			Cgroup: p.Cgroup, Container: p.Container, Unit: p.Unit,
		}
		who.processes[p.PID] = out
	}
	return out
}

func (who people) holder(h registry.Holder) *pb.Holder {
	out := &pb.Holder{Endpoint: fromEndpoint(h.Endpoint), State: pb.SocketState(h.State), Multipath: h.Multipath, Hidden: h.Hidden}
	if h.State != registry.SocketLeftover {
		out.Uid, out.User = &h.UID, who.name(h.UID)
	}
	for _, p := range h.Processes {
		out.Processes = append(out.Processes, who.process(p))
	}
	return out
}

func (who people) holders(holders []registry.Holder) (out []*pb.Holder) {
	for _, h := range holders {
		out = append(out, who.holder(h))
	}
	return out
}

// use tells of a use as one who is me may see it.
func (who people) use(u registry.Use, me registry.Principal) *pb.PortUse {
	r := u.Reservation
	if r == nil {
		if len(u.Holders) == 0 {
			return &pb.PortUse{}
		}
		h := who.holder(u.Holders[0])
		return &pb.PortUse{Endpoint: h.GetEndpoint(), By: &pb.PortUse_Holder{Holder: h}}
	}
	a := r.Assigned[u.Index]
	return &pb.PortUse{Endpoint: fromEndpoint(a.Endpoint), By: &pb.PortUse_Reservation{Reservation: &pb.ReservationUse{
		Id: r.ID, Name: r.Name, Owner: string(r.Owner), Yours: r.Owner == me, CreateTime: fromTime(r.Created),
		State: a.State(r.Spec.Mode).String(), Holders: who.holders(u.Holders),
	}}}
}

// ends says of a use by a reservation what ends that by itself.
func ends(use *pb.PortUse, e registry.Ending) *pb.PortUse {
	if r := use.GetReservation(); r != nil {
		r.Lease, r.ExpireTime = e.Lease, fromTime(e.Expires)
	}
	return use
}

func fromLease(l registry.LeaseStatus) *pb.Lease {
	return &pb.Lease{
		Id: l.ID, Owner: string(l.Owner), Spec: fromLeaseSpec(l.Spec), CreateTime: fromTime(l.Created),
		ExpireTime: fromTime(l.Expires), Connected: l.Connected,
	}
}

func fromLeaseSpec(s registry.LeaseSpec) *pb.LeaseSpec {
	switch s.Kind {
	case registry.TTLLease:
		return &pb.LeaseSpec{Kind: &pb.LeaseSpec_Ttl{Ttl: durationpb.New(s.TTL)}}
	case registry.ProcessLease:
		return &pb.LeaseSpec{Kind: &pb.LeaseSpec_Process{Process: &pb.ProcessLease{Pid: s.PID}}}
	}
	return &pb.LeaseSpec{Kind: &pb.LeaseSpec_Session{Session: &pb.SessionLease{Grace: durationpb.New(s.Grace)}}}
}

func fromChange(storeID string, ch registry.Change) *pb.WatchReservationsResponse {
	out := &pb.WatchReservationsResponse{Revision: int64(ch.Revision), Time: fromTime(ch.Time), StoreId: storeID}
	for _, e := range ch.Events {
		ev := &pb.Event{
			Type: pb.EventType(e.Type), Reservation: fromReservation(e.Reservation), Caller: string(e.Caller), Reason: e.Reason,
		}
		if e.Lease != nil {
			ev.Lease = fromLease(registry.LeaseStatus{Lease: e.Lease})
		}
		if e.Service != nil {
			ev.Service = services.Own(e.Service)
		}
		if e.Edition != nil {
			ev.ServiceRegistry = services.Edition(e.Edition)
		}
		out.Events = append(out.Events, ev)
	}
	return out
}

// fromTime is nil for the zero time.
func fromTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func fromFeatures(features []Feature) (out []*pb.KernelFeature) {
	for _, f := range features {
		out = append(out, &pb.KernelFeature{Name: f.Name, Available: f.Available, Consequence: f.Consequence})
	}
	return out
}

// hidden are the sentences that say what the caller may not see, each once.
func hidden(uses []registry.Use) (out []string) {
	for _, u := range uses {
		for _, h := range u.Holders {
			if h.Hidden != "" && !slices.Contains(out, h.Hidden) {
				out = append(out, h.Hidden)
			}
		}
	}
	return out
}

func fromWorker(w Worker) *pb.Worker {
	out := &pb.Worker{
		Id: w.ID, Owner: string(registry.UIDPrincipal(w.UID)), Pid: w.PID, Command: w.Command,
		Sent: w.Sent, Done: w.Done, AttachTime: fromTime(w.Attached),
		Generation: w.Generation, Received: w.Received, TakenBack: w.TakenBack, Stuck: w.Stuck, PerSecond: w.PerSecond,
	}
	for _, l := range w.Listeners {
		out.Listeners = append(out.Listeners, &pb.WorkerListener{
			ReservationId: l.Key.Reservation, Endpoint: fromEndpoint(l.Endpoint), State: pb.WorkerState(l.State), Socket: l.Socket,
			Room: uint32(l.Room), Drained: l.Drained, Weight: uint32(l.Weight), Priority: uint32(l.Priority),
		})
	}
	return out
}
