package boltstore

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore/storepb"
)

// An enum pairs the registry's values with the numbers in the file, which stay when the registry's change.
type enum[T ~uint8, S ~int32] []struct {
	value  T
	stored S
}

var modes = enum[registry.Mode, storepb.Mode]{
	{registry.Held, storepb.Mode_MODE_HELD},
	{registry.Recorded, storepb.Mode_MODE_RECORDED},
}

var leaseKinds = enum[registry.LeaseKind, storepb.LeaseKind]{
	{registry.SessionLease, storepb.LeaseKind_LEASE_KIND_SESSION},
	{registry.TTLLease, storepb.LeaseKind_LEASE_KIND_TTL},
	{registry.ProcessLease, storepb.LeaseKind_LEASE_KIND_PROCESS},
}

var eventTypes = enum[registry.EventType, storepb.EventType]{
	{registry.EventReserved, storepb.EventType_EVENT_TYPE_RESERVED},
	{registry.EventReleased, storepb.EventType_EVENT_TYPE_RELEASED},
	{registry.EventListening, storepb.EventType_EVENT_TYPE_LISTENING},
	{registry.EventClosed, storepb.EventType_EVENT_TYPE_CLOSED},
	{registry.EventLost, storepb.EventType_EVENT_TYPE_LOST},
	{registry.EventRecovered, storepb.EventType_EVENT_TYPE_RECOVERED},
	{registry.EventExpired, storepb.EventType_EVENT_TYPE_EXPIRED},
	{registry.EventLeaseCreated, storepb.EventType_EVENT_TYPE_LEASE_CREATED},
	{registry.EventLeaseEnded, storepb.EventType_EVENT_TYPE_LEASE_ENDED},
	{registry.EventServiceAdded, storepb.EventType_EVENT_TYPE_SERVICE_ADDED},
	{registry.EventServiceEdited, storepb.EventType_EVENT_TYPE_SERVICE_EDITED},
	{registry.EventServiceRemoved, storepb.EventType_EVENT_TYPE_SERVICE_REMOVED},
	{registry.EventRegistryReplaced, storepb.EventType_EVENT_TYPE_REGISTRY_REPLACED},
	{registry.EventUpdated, storepb.EventType_EVENT_TYPE_UPDATED},
}

var preferences = enum[registry.Preference, storepb.Preference]{
	{registry.PreferredByRequest, storepb.Preference_PREFERENCE_REQUEST},
	{registry.PreferredByName, storepb.Preference_PREFERENCE_NAME},
}

func (e enum[T, S]) number(v T) (S, error) {
	for _, p := range e {
		if p.value == v {
			return p.stored, nil
		}
	}
	return 0, fmt.Errorf("%T %d has no number in the store", v, uint8(v))
}

func (e enum[T, S]) meaning(s S) (T, error) {
	for _, p := range e {
		if p.stored == s {
			return p.value, nil
		}
	}
	var none T
	return none, fmt.Errorf("no %T has number %d", none, s)
}

// toStored makes what is written of the registry's types. It keeps the first error and goes on, so that the types can
// be written down as they are.
type toStored struct {
	err error

	// A change has a new reservation twice, as a record and in the event that tells of it.
	last *registry.Reservation
	made *storepb.Reservation
}

func (c *toStored) reservation(r *registry.Reservation) *storepb.Reservation {
	switch r {
	case nil:
		return nil
	case c.last:
		return c.made
	}
	m := &storepb.Reservation{
		Id:             r.ID,
		Name:           r.Name,
		Labels:         r.Labels,
		Owner:          string(r.Owner),
		Group:          r.Group,
		Spec:           c.spec(r.Spec),
		Lease:          r.Lease,
		Created:        c.time(r.Created),
		CreateRevision: int64(r.CreateRevision),
		Revision:       int64(r.Revision),
	}
	for _, a := range r.Assigned {
		m.Assigned = append(m.Assigned, c.assigned(a))
	}
	c.last, c.made = r, m
	return m
}

func (c *toStored) spec(s registry.Spec) *storepb.Spec {
	mode, err := modes.number(s.Mode)
	c.fail(err)
	m := &storepb.Spec{Mode: mode}
	for _, e := range s.Endpoints {
		m.Endpoints = append(m.Endpoints, c.endpointSpec(e))
	}
	if o := s.Options; o != (registry.BindOptions{}) {
		m.Options = &storepb.BindOptions{Freebind: o.Freebind, Transparent: o.Transparent, Mptcp: o.MPTCP, Group: int64(o.Group), FileMode: uint32(o.FileMode)}
	}
	return m
}

func (c *toStored) endpointSpec(e registry.EndpointSpec) *storepb.EndpointSpec {
	m := &storepb.EndpointSpec{
		Netns:   e.Netns,
		V6Only:  e.V6Only,
		Device:  e.Device,
		Exact:   c.ports(e.Exact),
		Service: e.Service,
		Path:    e.Path,
	}
	for _, p := range e.Protos {
		m.Protocols = append(m.Protocols, uint32(p))
	}
	for _, a := range e.Addrs {
		m.Addresses = append(m.Addresses, c.addr(a))
	}
	if e.Any != nil {
		m.Any = &storepb.AnyPorts{
			Within: c.ports(e.Any.Within), Count: int64(e.Any.Count),
			Pool: e.Any.Pool, PreferService: e.Any.PreferService, PreferPort: uint32(e.Any.PreferPort),
		}
	}
	return m
}

func (c *toStored) assigned(a registry.Assigned) *storepb.Assigned {
	e := a.Endpoint
	m := &storepb.Assigned{Endpoint: &storepb.Endpoint{
		Netns:    e.Netns,
		Protocol: uint32(e.Proto),
		Address:  c.addr(e.Addr),
		V6Only:   e.V6Only,
		Device:   e.Device,
		Ports:    c.ports(registry.PortRange{First: e.First, Last: e.Last}),
		Path:     e.Path,
	}}
	if l := a.Listen; l != nil {
		m.Listen = &storepb.ListenOptions{
			Backlog:                int64(l.Backlog),
			NoDelayOff:             l.NoDelayOff,
			KeepAliveOff:           l.KeepAliveOff,
			KeepAliveIdleNanos:     int64(l.KeepAliveIdle),
			KeepAliveIntervalNanos: int64(l.KeepAliveInterval),
			KeepAliveProbes:        int64(l.KeepAliveProbes),
			UserTimeoutNanos:       int64(l.UserTimeout),
			DeferAcceptNanos:       int64(l.DeferAccept),
			FastOpen:               int64(l.FastOpen),
			Mark:                   l.Mark,
			ReceiveBuffer:          int64(l.ReceiveBuffer),
			SendBuffer:             int64(l.SendBuffer),
			Handoff:                c.handoff(l.Handoff),
		}
	}
	for _, r := range a.Lost {
		m.Lost = append(m.Lost, &storepb.PortRange{First: uint32(r.First), Last: uint32(r.Last)})
	}
	return m
}

func (c *toStored) lease(l *registry.Lease) *storepb.Lease {
	if l == nil {
		return nil
	}
	kind, err := leaseKinds.number(l.Spec.Kind)
	c.fail(err)
	return &storepb.Lease{
		Id:    l.ID,
		Owner: string(l.Owner),
		Spec: &storepb.LeaseSpec{
			Kind:       kind,
			TtlNanos:   int64(l.Spec.TTL),
			Pid:        l.Spec.PID,
			GraceNanos: int64(l.Spec.Grace),
		},
		Token:          c.digest(l.Token),
		Start:          l.Start,
		Single:         l.Single,
		Created:        c.time(l.Created),
		CreateRevision: int64(l.CreateRevision),
	}
}

func (c *toStored) request(r *registry.Request) *storepb.Request {
	m := &storepb.Request{
		Caller:   string(r.Caller),
		Method:   r.Method,
		Id:       r.ID,
		Digest:   c.digest(r.Digest),
		Time:     c.time(r.Time),
		Result:   c.reservation(r.Result),
		Lease:    c.lease(r.Lease),
		Revision: int64(r.Revision),
	}
	for _, p := range r.Passed {
		why, err := preferences.number(p.Preference)
		c.fail(err)
		m.Passed = append(m.Passed, &storepb.PassedOver{Ports: c.ports(p.Ports), Preference: why, Reason: c.text(p.Reason)})
	}
	return m
}

func (c *toStored) former(f *registry.Former) *storepb.Former {
	return &storepb.Former{Reservation: c.reservation(f.Reservation), Ended: c.time(f.Ended), Until: c.time(f.Until)}
}

func (c *toStored) namespace(n *registry.Namespace) *storepb.Namespace {
	return &storepb.Namespace{Name: n.Name, Inode: n.Inode, Cookie: n.Cookie, BootId: n.BootID}
}

func (c *toStored) boot(b *registry.Boot) *storepb.Boot {
	return &storepb.Boot{Id: b.ID, Seen: c.time(b.Seen)}
}

// change is what is kept for Events; the records that the change puts and deletes have places of their own.
func (c *toStored) change(ch registry.Change) *storepb.Change {
	m := &storepb.Change{Time: c.time(ch.Time)}
	for _, e := range ch.Events {
		typ, err := eventTypes.number(e.Type)
		c.fail(err)
		m.Events = append(m.Events, &storepb.Event{
			Type:        typ,
			Reservation: c.reservation(e.Reservation),
			Lease:       c.lease(e.Lease),
			Service:     c.service(e.Service),
			Edition:     c.editionFacts(e.Edition),
			Caller:      string(e.Caller),
			Reason:      c.text(e.Reason),
		})
	}
	return m
}

// text is a sentence, which may name a process, whose name may be any bytes.
func (c *toStored) text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func (c *toStored) ports(r registry.PortRange) *storepb.PortRange {
	if r == (registry.PortRange{}) {
		return nil
	}
	return &storepb.PortRange{First: uint32(r.First), Last: uint32(r.Last)}
}

func (c *toStored) addr(a netip.Addr) []byte {
	b, err := a.MarshalBinary()
	c.fail(err)
	return b
}

func (c *toStored) digest(d [32]byte) []byte {
	if d == ([32]byte{}) {
		return nil
	}
	return d[:]
}

func (c *toStored) time(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	m := timestamppb.New(t)
	c.fail(m.CheckValid())
	return m
}

func (c *toStored) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

// fromStored makes the registry's types of what was written, and keeps the first error.
type fromStored struct{ err error }

func (c *fromStored) reservation(m *storepb.Reservation) *registry.Reservation {
	if m == nil {
		return nil
	}
	r := &registry.Reservation{
		ID:             m.GetId(),
		Name:           m.GetName(),
		Labels:         m.GetLabels(),
		Owner:          registry.Principal(m.GetOwner()),
		Group:          m.Group,
		Spec:           c.spec(m.GetSpec()),
		Lease:          m.GetLease(),
		Created:        c.time(m.GetCreated()),
		CreateRevision: registry.Revision(m.GetCreateRevision()),
		Revision:       registry.Revision(m.GetRevision()),
	}
	for _, a := range m.GetAssigned() {
		r.Assigned = append(r.Assigned, c.assigned(a))
	}
	return r
}

func (c *fromStored) spec(m *storepb.Spec) registry.Spec {
	mode, err := modes.meaning(m.GetMode())
	c.fail(err)
	o := m.GetOptions()
	s := registry.Spec{
		Mode:    mode,
		Options: registry.BindOptions{Freebind: o.GetFreebind(), Transparent: o.GetTransparent(), MPTCP: o.GetMptcp(), Group: int(o.GetGroup()), FileMode: c.fileMode(o.GetFileMode())},
	}
	for _, e := range m.GetEndpoints() {
		s.Endpoints = append(s.Endpoints, c.endpointSpec(e))
	}
	return s
}

func (c *fromStored) endpointSpec(m *storepb.EndpointSpec) registry.EndpointSpec {
	e := registry.EndpointSpec{
		Netns:   m.GetNetns(),
		V6Only:  m.GetV6Only(),
		Device:  m.GetDevice(),
		Exact:   c.ports(m.GetExact()),
		Service: m.GetService(),
		Path:    m.GetPath(),
	}
	for _, p := range m.GetProtocols() {
		e.Protos = append(e.Protos, c.protocol(p))
	}
	for _, a := range m.GetAddresses() {
		e.Addrs = append(e.Addrs, c.addr(a))
	}
	if a := m.GetAny(); a != nil {
		e.Any = &registry.AnyPorts{
			Within: c.ports(a.GetWithin()), Count: int(a.GetCount()),
			Pool: a.GetPool(), PreferService: a.GetPreferService(), PreferPort: c.port(a.GetPreferPort()),
		}
	}
	return e
}

func (c *fromStored) assigned(m *storepb.Assigned) registry.Assigned {
	e, ports := m.GetEndpoint(), c.ports(m.GetEndpoint().GetPorts())
	a := registry.Assigned{Endpoint: registry.Endpoint{
		Netns:  e.GetNetns(),
		Proto:  c.protocol(e.GetProtocol()),
		Addr:   c.addr(e.GetAddress()),
		V6Only: e.GetV6Only(),
		Device: e.GetDevice(),
		First:  ports.First,
		Last:   ports.Last,
		Path:   e.GetPath(),
	}}
	if l := m.GetListen(); l != nil {
		a.Listen = &registry.ListenOptions{
			Backlog:           int(l.GetBacklog()),
			NoDelayOff:        l.GetNoDelayOff(),
			KeepAliveOff:      l.GetKeepAliveOff(),
			KeepAliveIdle:     time.Duration(l.GetKeepAliveIdleNanos()),
			KeepAliveInterval: time.Duration(l.GetKeepAliveIntervalNanos()),
			KeepAliveProbes:   int(l.GetKeepAliveProbes()),
			UserTimeout:       time.Duration(l.GetUserTimeoutNanos()),
			DeferAccept:       time.Duration(l.GetDeferAcceptNanos()),
			FastOpen:          int(l.GetFastOpen()),
			Mark:              l.GetMark(),
			ReceiveBuffer:     int(l.GetReceiveBuffer()),
			SendBuffer:        int(l.GetSendBuffer()),
			Handoff:           c.handoff(l.GetHandoff()),
		}
	}
	for _, r := range m.GetLost() {
		a.Lost = append(a.Lost, c.ports(r))
	}
	return a
}

func (c *fromStored) lease(m *storepb.Lease) *registry.Lease {
	if m == nil {
		return nil
	}
	kind, err := leaseKinds.meaning(m.GetSpec().GetKind())
	c.fail(err)
	return &registry.Lease{
		ID:    m.GetId(),
		Owner: registry.Principal(m.GetOwner()),
		Spec: registry.LeaseSpec{
			Kind:  kind,
			TTL:   time.Duration(m.GetSpec().GetTtlNanos()),
			PID:   m.GetSpec().GetPid(),
			Grace: time.Duration(m.GetSpec().GetGraceNanos()),
		},
		Token:          c.digest(m.GetToken()),
		Start:          m.GetStart(),
		Single:         m.GetSingle(),
		Created:        c.time(m.GetCreated()),
		CreateRevision: registry.Revision(m.GetCreateRevision()),
	}
}

func (c *fromStored) request(m *storepb.Request) *registry.Request {
	r := &registry.Request{
		Caller:   registry.Principal(m.GetCaller()),
		Method:   m.GetMethod(),
		ID:       m.GetId(),
		Digest:   c.digest(m.GetDigest()),
		Time:     c.time(m.GetTime()),
		Result:   c.reservation(m.GetResult()),
		Lease:    c.lease(m.GetLease()),
		Revision: registry.Revision(m.GetRevision()),
	}
	for _, p := range m.GetPassed() {
		why, err := preferences.meaning(p.GetPreference())
		c.fail(err)
		r.Passed = append(r.Passed, registry.PassedOver{Ports: c.ports(p.GetPorts()), Preference: why, Reason: p.GetReason()})
	}
	return r
}

func (c *fromStored) former(m *storepb.Former) *registry.Former {
	f := &registry.Former{Reservation: c.reservation(m.GetReservation()), Ended: c.time(m.GetEnded()), Until: c.time(m.GetUntil())}
	if f.Reservation == nil {
		c.fail(fmt.Errorf("a former reservation of which nothing is known"))
	}
	return f
}

func (c *fromStored) namespace(m *storepb.Namespace) *registry.Namespace {
	return &registry.Namespace{Name: m.GetName(), Inode: m.GetInode(), Cookie: m.GetCookie(), BootID: m.GetBootId()}
}

func (c *fromStored) boot(m *storepb.Boot) *registry.Boot {
	return &registry.Boot{ID: m.GetId(), Seen: c.time(m.GetSeen())}
}

func (c *fromStored) change(at registry.Revision, m *storepb.Change) registry.Change {
	ch := registry.Change{Revision: at, Time: c.time(m.GetTime())}
	for _, e := range m.GetEvents() {
		typ, err := eventTypes.meaning(e.GetType())
		if err != nil {
			continue // of a newer portd; who watches here would not know what to make of it either
		}
		ch.Events = append(ch.Events, registry.Event{
			Type:        typ,
			Reservation: c.reservation(e.GetReservation()),
			Lease:       c.lease(e.GetLease()),
			Service:     c.service(e.GetService()),
			Edition:     c.editionFacts(e.GetEdition()),
			Caller:      registry.Principal(e.GetCaller()),
			Reason:      e.GetReason(),
		})
	}
	return ch
}

func (c *fromStored) ports(m *storepb.PortRange) registry.PortRange {
	first, last := m.GetFirst(), m.GetLast()
	if first > math.MaxUint16 || last > math.MaxUint16 {
		c.fail(fmt.Errorf("%d-%d are no ports", first, last))
	}
	return registry.PortRange{First: uint16(first), Last: uint16(last)}
}

func (c *fromStored) port(p uint32) uint16 { return c.ports(&storepb.PortRange{First: p}).First }

func (c *fromStored) fileMode(m uint32) uint16 {
	if m > math.MaxUint16 {
		c.fail(fmt.Errorf("a file mode of %o", m))
	}
	return uint16(m)
}

func (c *fromStored) protocol(p uint32) registry.Protocol {
	if p > math.MaxUint8 {
		c.fail(fmt.Errorf("%d is no IP protocol", p))
	}
	return registry.Protocol(p)
}

func (c *fromStored) addr(b []byte) (a netip.Addr) {
	if err := a.UnmarshalBinary(b); err != nil {
		c.fail(fmt.Errorf("address %x: %w", b, err))
	}
	return a
}

func (c *fromStored) digest(b []byte) (d [32]byte) {
	if len(b) != 0 && len(b) != len(d) {
		c.fail(fmt.Errorf("a digest of %d bytes", len(b)))
	}
	copy(d[:], b)
	return d
}

func (c *fromStored) time(m *timestamppb.Timestamp) time.Time {
	if m == nil {
		return time.Time{}
	}
	c.fail(m.CheckValid())
	return m.AsTime()
}

func (c *fromStored) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}
