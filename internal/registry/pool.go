package registry

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// DefaultPoolOf is the pool DefaultPool of a portd whose administrator has said nothing about it: what lies from 1024 up,
// for ports below are for those who are known by them, and is not meant for anything else.
func DefaultPoolOf() Pool {
	p := Pool{Name: DefaultPool, Ports: map[Protocol]PoolPorts{}, Quarantine: time.Minute}
	for _, k := range protocols {
		p.Ports[k.p] = PoolPorts{Ranges: []PortRange{{1024, 65535}}, Avoid: AvoidEphemeral | AvoidNodePorts | AvoidAssigned}
	}
	return p
}

// A pool is a Pool as a choice wants it.
type pool struct {
	Pool
	ranges map[Protocol]*portSet
}

// pools are Settings with their pools at hand. They never change; Apply makes others.
type pools struct {
	settings Settings
	byName   map[string]*pool
	names    []string // DefaultPool first, the others sorted
}

// Apply replaces the settings, at any time. Reservations stay as they are; what is chosen or released from then on goes by
// the new ones. Where the error is not nil, an ErrInvalid that names the pool, the old ones stay. s may not be changed afterwards.
func (r *Registry) Apply(s Settings) error {
	next, err := newPools(s)
	if err == nil {
		r.pools.Store(next)
	}
	return err
}

// Settings are those that were last applied.
func (r *Registry) Settings() Settings { return r.pools.Load().settings }

func newPools(s Settings) (*pools, error) {
	all := &pools{settings: s, byName: map[string]*pool{}}
	for _, p := range s.Pools {
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("pool %q: %w", p.Name, err)
		}
		if all.byName[p.Name] != nil {
			return nil, fmt.Errorf("pool %q: %w", p.Name, invalid("name", "there are two of that name"))
		}
		all.byName[p.Name] = newPool(p)
	}
	if all.byName[DefaultPool] == nil {
		all.byName[DefaultPool] = newPool(DefaultPoolOf())
	}
	all.names = slices.Sorted(maps.Keys(all.byName))
	at := slices.Index(all.names, DefaultPool)
	all.names = slices.Insert(slices.Delete(all.names, at, at+1), 0, DefaultPool)
	return all, nil
}

func newPool(p Pool) *pool {
	compiled := &pool{Pool: p, ranges: map[Protocol]*portSet{}}
	for proto, ports := range p.Ports {
		set := new(portSet)
		for _, r := range ports.Ranges {
			set.addRange(r)
		}
		compiled.ranges[proto] = set
	}
	return compiled
}

func (p Pool) check() error {
	if err := ValidateName(p.Name); err != nil {
		return err
	}
	if int(p.Strategy) >= len(strategies) {
		return invalid("strategy", "%d is not one; known are %s", p.Strategy, strings.Join(strategies[:], ", "))
	}
	if p.Quarantine < 0 {
		return invalid("quarantine", "%v is less than nothing", p.Quarantine)
	}
	if len(p.Ports) == 0 {
		return invalid("ports", "it has none, of no protocol")
	}
	for proto, ports := range p.Ports {
		if !proto.known() {
			return invalid("ports", "%v is not a protocol that has ports; known are %s", proto, protocolNames())
		}
		if len(ports.Ranges) == 0 {
			return invalid(proto.String(), "it has no ports")
		}
		for _, r := range ports.Ranges {
			if r.First == 0 || r.Last < r.First {
				return invalid(proto.String(), "%d-%d is not a range of ports; allowed are 1 to 65535, the lower one first", r.First, r.Last)
			}
		}
	}
	return nil
}

// kinds of ports that a pool leaves out, in the order in which they are counted.
const (
	leftEphemeral = iota
	leftNodePorts
	leftAssigned
	leftKept
	kindsLeft
)

// leftOut is what a pool leaves out, kind by kind. Some port may be in several.
type leftOut [kindsLeft]portSet

func (l *leftOut) add(r *Registry, netns string, proto Protocol, a Avoid) {
	if a&AvoidEphemeral != 0 {
		l[leftEphemeral].addRange(r.cfg.Binder.Ephemeral(netns))
	}
	if a&AvoidNodePorts != 0 {
		l[leftNodePorts].addRange(nodePorts)
	}
	if a&AvoidAssigned != 0 {
		apart := r.apartness()
		l[leftAssigned].addAll(apart.assigned[proto])
		l[leftKept].addAll(apart.kept[proto])
	}
}

// poolName is the pool that a choice is made from; empty where a range is asked for and no pool.
func (a *AnyPorts) poolName() string {
	if a.Pool == "" && a.Within == (PortRange{}) {
		return DefaultPool
	}
	return a.Pool
}

// pool is the pool that a spec's ports are to be chosen from, nil where that is none.
func (r *Registry) pool(s EndpointSpec) (*pool, error) {
	name := s.Any.poolName()
	if name == "" {
		return nil, nil
	}
	all := r.pools.Load()
	p := all.byName[name]
	if p == nil {
		return nil, failed(ErrNotFound, "there is no pool %q; there are %s", name, strings.Join(all.names, ", "))
	}
	for _, proto := range s.Protos {
		if p.ranges[proto] == nil {
			return nil, invalid("spec.endpoints.any.pool", "the pool %q has no ports of %v", name, proto)
		}
	}
	return p, nil
}

// choosable are the ports that a spec's may be chosen from: those of its pool, nil where it has none, in the range that is
// asked for, as far as the policy lets c have them. Where that is none of them, the error says why.
func (r *Registry) choosable(c Caller, s EndpointSpec, opt BindOptions) (p *pool, set portSet, err error) {
	within := s.Any.Within
	if within == (PortRange{}) {
		within = PortRange{1, 65535}
	}
	set.addRange(within)
	if p, err = r.pool(s); err != nil || p == nil {
		return p, set, err
	}
	for _, proto := range s.Protos {
		set.keepAll(p.ranges[proto])
	}
	if set.empty() {
		return p, set, invalid("spec.endpoints.any", "the pool %q has no port of %s in %d-%d", p.Name, protoList(s.Protos), within.First, within.Last)
	}
	policy := r.policyIn(c, s.Netns)
	var denied error
	for _, ep := range s.endpoints() {
		for _, run := range set.ranges() {
			// A pool may have ports that not everybody may have; for the others it is as if it had them not.
			if denied = policy.Reserve(c, ep.ports(run), opt); denied == nil {
				continue
			}
			for port := int(run.First); port <= int(run.Last); port++ {
				if err := policy.Reserve(c, ep.At(uint16(port)), opt); err != nil {
					set.remove(uint16(port))
				}
			}
		}
		if set.empty() {
			return p, set, denied
		}
	}
	return p, set, nil
}

// Pools are the pools and how it stands with them in portd's own network namespace, DefaultPool first, the others by their names.
func (r *Registry) Pools() []PoolStatus {
	r.endQuarantines()
	all := r.pools.Load()
	out := make([]PoolStatus, len(all.names))
	for i, name := range all.names {
		p := all.byName[name]
		out[i] = PoolStatus{Pool: p.Pool, Counts: map[Protocol]PoolCounts{}}
		for proto, ports := range p.Ports {
			var left leftOut
			left.add(r, HostNetns, proto, ports.Avoid)
			open, kept := *p.ranges[proto], portSet{}
			for k := range left {
				open.removeAll(&left[k])
			}
			n := PoolCounts{Size: open.count()}
			r.mu.RLock()
			if in := r.claims[space{HostNetns, proto}]; in != nil {
				open.removeAll(&in.any)
				n.Reserved = n.Size - open.count()
			}
			if in := r.quarantine.at[space{HostNetns, proto}]; in != nil {
				kept = in.any
			}
			r.mu.RUnlock()
			kept.keepAll(&open)
			n.Quarantined = kept.count()
			out[i].Counts[proto] = n
		}
	}
	return out
}
