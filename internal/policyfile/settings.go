package policyfile

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/portd/portd/internal/registry"
)

// Limits of what a file may say.
const (
	maxPools      = 256
	maxQuarantine = 30 * 24 * time.Hour
	minRevisions  = 100
	maxRevisions  = 100_000_000
	minAge        = time.Minute
	maxAge        = 100 * 365 * 24 * time.Hour
)

const portsLike = "20000-24999, 26000"

func (r *reader) settings(n *yaml.Node) (s registry.Settings) {
	r.mapping(n, "", func(key string, at, v *yaml.Node) {
		switch key {
		case "pools":
			s.Pools = r.pools(v)
		case "history":
			s.History = r.history(v)
		default:
			r.unknown(at, "", key, "pools", "history")
		}
	})
	return s
}

func (r *reader) history(n *yaml.Node) (h registry.History) {
	r.mapping(n, "history", func(key string, at, v *yaml.Node) {
		switch field := under("history", key); key {
		case "revisions":
			h.Revisions = r.number(v, field, minRevisions, maxRevisions)
		case "age":
			h.Age = r.duration(v, field, minAge, maxAge)
		default:
			r.unknown(at, "history", key, "revisions", "age")
		}
	})
	return h
}

func (r *reader) pools(n *yaml.Node) (pools []registry.Pool) {
	r.mapping(n, "pools", func(name string, at, v *yaml.Node) {
		field := under("pools", shorten(name))
		switch err := registry.ValidateName(name); {
		case err != nil:
			r.wrong(at, "pools", "%s", reason(err))
		case len(pools) == maxPools:
			r.wrong(at, field, "is one pool too many; allowed are %d", maxPools)
		default:
			pools = append(pools, r.pool(name, field, at, v))
		}
	})
	return pools
}

// pool reads one pool. What it does not say is as in portd's own default pool, but for avoid: whoever writes down ranges
// means all of them.
func (r *reader) pool(name, field string, at, n *yaml.Node) registry.Pool {
	own := registry.DefaultPoolOf()
	p := registry.Pool{Name: name, Ports: map[registry.Protocol]registry.PoolPorts{}, Quarantine: own.Quarantine}
	var avoid *registry.Avoid
	errs := len(r.errs)
	r.mapping(n, field, func(key string, at, v *yaml.Node) {
		switch field := under(field, shorten(key)); key {
		case "strategy":
			p.Strategy = r.strategy(v, field)
		case "avoid":
			avoid = new(r.avoid(v, field))
		case "quarantine":
			p.Quarantine = r.duration(v, field, 0, maxQuarantine)
		default:
			r.ports(&p, key, field, at, v)
		}
	})
	if name == registry.DefaultPool {
		for proto, ports := range own.Ports {
			if _, said := p.Ports[proto]; !said {
				p.Ports[proto] = ports
			}
		}
	}
	if avoid != nil {
		for proto, ports := range p.Ports {
			ports.Avoid = *avoid
			p.Ports[proto] = ports
		}
	}
	if len(p.Ports) == 0 && len(r.errs) == errs {
		r.wrong(at, field, "has no ports; give it some, like tcp: %s", portsLike)
	}
	return p
}

// ports reads the ranges of the protocols that are the key: "tcp", or "tcp,udp".
func (r *reader) ports(p *registry.Pool, protos, field string, at, n *yaml.Node) {
	var ranges []registry.PortRange
	for name := range strings.SplitSeq(protos, ",") {
		proto, err := registry.ParseProtocol(strings.TrimSpace(name))
		if err != nil {
			r.unknown(at, under("pools", p.Name), name, "protocols (tcp, udp, sctp, dccp, udplite)", "strategy", "avoid", "quarantine")
			continue
		}
		if _, again := p.Ports[proto]; again {
			r.wrong(at, field, "%v is there twice in this pool", proto)
			continue
		}
		if ranges == nil {
			ranges = r.ranges(n, field)
		}
		p.Ports[proto] = registry.PoolPorts{Ranges: ranges}
	}
}

func (r *reader) ranges(n *yaml.Node, field string) []registry.PortRange {
	all := []registry.PortRange{}
	for _, w := range r.words(n, field, portsLike) {
		if ports, ok := r.portRange(w, field); ok {
			all = append(all, ports)
		}
	}
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		r.wrong(n, field, "is empty; wanted is something like %s, or no such key", portsLike)
	}
	return all
}

// portRange reads "20000-24999" or "26000".
func (r *reader) portRange(w word, field string) (ports registry.PortRange, ok bool) {
	first, last, isRange := strings.Cut(w.text, "-")
	if !isRange {
		last = first
	}
	f, err1 := strconv.ParseUint(first, 10, 16)
	l, err2 := strconv.ParseUint(last, 10, 16)
	switch {
	case err1 != nil || err2 != nil || f == 0 || l == 0:
		r.wrong(w.at, field, "%q is no port and no range; allowed are 1 to 65535, as in %s", shorten(w.text), portsLike)
	case l < f:
		r.wrong(w.at, field, "%s runs backwards; write %d-%d", w.text, l, f)
	default:
		return registry.PortRange{First: uint16(f), Last: uint16(l)}, true
	}
	return registry.PortRange{}, false
}

func (r *reader) strategy(n *yaml.Node, field string) registry.Strategy {
	if n.Kind != yaml.ScalarNode {
		r.wrong(n, field, "is %s; wanted is a word like lowest", what(n))
		return 0
	}
	s, err := registry.ParseStrategy(n.Value)
	if err != nil {
		r.wrong(n, field, "%s", reason(err))
	}
	return s
}

// avoid reads a list of kinds of ports; [] is none.
func (r *reader) avoid(n *yaml.Node, field string) (all registry.Avoid) {
	for _, w := range r.words(n, field, "[ephemeral, node-ports], or [] for none") {
		kind, err := registry.ParseAvoid(w.text)
		if err != nil {
			r.wrong(w.at, field, "%s", reason(err))
		}
		all |= kind
	}
	return all
}

// reason is what an error of the registry says, without the name of its field: the file's is said already.
func reason(err error) string {
	var invalid *registry.InvalidError
	if errors.As(err, &invalid) {
		return invalid.Reason
	}
	return err.Error()
}
