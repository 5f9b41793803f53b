package handoff

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/sockdiag"
	"github.com/portd/portd/internal/wire"
)

// A survey is what was handed over, the newest first, with what the kernel had of it at one moment. It does not change.
type survey struct {
	only    string // of this reservation; empty: of all
	entries []entry
	owners  map[*listener]registry.Principal
	kernel  []connected
	blind   error // why some of the kernel's table could not be had
}

// An entry is a record with its number.
type entry struct {
	handed
	seq    uint64
	kernel int32 // index in the survey's kernel; -1 where it is over
}

// connected is a connection of the kernel's table.
type connected struct {
	sockdiag.Connection
	claimed bool
	next    int32  // of the same flow; -1 at the last one
	twins   string // states of all those of the flow that cannot be told apart
}

// A flow is what is known of a connection by its record, but for the local address, which accept(2) does not tell.
type flow struct {
	peer      [16]byte // IPv4 as mapped
	scope     uint32
	peerPort  uint16
	localPort uint16
	netns     uint16 // which of the namespaces looked into
}

// survey asks the kernel about all that is remembered, or about what is of one reservation.
func (p *Pool) survey(ctx context.Context, only string, figures bool) (*survey, error) {
	all, newest := p.remembered(0)
	return p.match(ctx, &survey{only: only, entries: all}, newest, figures)
}

// match finds the entries of v, which are the newest first up to newest, in the kernel's table.
func (p *Pool) match(ctx context.Context, v *survey, newest uint64, figures bool) (*survey, error) {
	namespaces, index := v.ports()
	heads := make(map[flow]int32)
	for i, n := range namespaces {
		err := p.enter(n.name, func() error {
			return sockdiag.Connections(ctx, n.ports, figures, func(c sockdiag.Connection) { v.found(heads, uint16(i), c, p.self) })
		})
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		v.blind = errors.Join(v.blind, err)
	}
	// What was handed over since has its flow for itself, whoever had it before.
	free := len(v.kernel)
	later, _ := p.remembered(newest)
	for i := range later {
		free -= v.claim(heads, index, &later[i])
	}
	for i := range v.entries {
		e := &v.entries[i]
		if e.kernel = -1; free > 0 {
			free -= v.claim(heads, index, e)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	v.owners = make(map[*listener]registry.Principal)
	var last *listener
	for i := range v.entries {
		if of := v.entries[i].listener; of != last {
			last = of
			v.owners[of] = of.owner
		}
	}
	return v, nil
}

// A namespace is where to look for connections of some ports.
type namespace struct {
	name  string
	ports []sockdiag.PortRange
}

// ports are where the entries' connections are, and which of the namespaces is which.
func (v *survey) ports() (all []namespace, index map[string]uint16) {
	index = make(map[string]uint16)
	seen := make(map[*registry.Endpoint]bool)
	var last *registry.Endpoint
	for i := range v.entries {
		e := &v.entries[i]
		if e.endpoint == last || e.family == wire.FamilyUnix || v.only != "" && v.only != e.listener.key.Reservation {
			continue
		}
		last = e.endpoint
		if seen[last] {
			continue
		}
		seen[last] = true
		at, known := index[last.Netns]
		if !known {
			at = uint16(len(all))
			index[last.Netns] = at
			all = append(all, namespace{name: last.Netns})
		}
		all[at].ports = append(all[at].ports, sockdiag.PortRange{First: last.First, Last: last.Last})
	}
	return all, index
}

// found takes up a connection, unless nobody has accepted it yet, or somebody else than portd has.
func (v *survey) found(heads map[flow]int32, netns uint16, c sockdiag.Connection, self uint32) {
	if c.Inode == 0 && (c.State == sockdiag.Established || c.State == sockdiag.CloseWait || c.State == sockdiag.SynRecv) || c.Inode != 0 && c.UID != self {
		return
	}
	f := flow{peer: c.Remote.Addr().As16(), peerPort: c.Remote.Port(), localPort: c.Local.Port(), netns: netns}
	if linkLocal(c.Remote.Addr()) {
		f.scope = uint32(c.Device)
	}
	next, known := heads[f]
	if !known {
		next = -1
	}
	heads[f] = int32(len(v.kernel))
	v.kernel = append(v.kernel, connected{Connection: c, next: next})
}

// claim gives e the connection that it is of, and says how many that are: of several records of a flow the newest ones have what there is,
// for an older one can only be over, or be the same that was delivered once more.
func (v *survey) claim(heads map[flow]int32, index map[string]uint16, e *entry) int {
	if e.family == wire.FamilyUnix {
		return 0
	}
	netns, known := index[e.endpoint.Netns]
	if !known {
		return 0
	}
	head, known := heads[flow{peer: e.mapped(), scope: e.scope, peerPort: e.port, localPort: e.endpoint.First, netns: netns}]
	if !known {
		return 0
	}
	var mine []int32 // in most cases one
	var room [4]int32
	mine = room[:0]
	for i := head; i >= 0; i = v.kernel[i].next {
		k := &v.kernel[i]
		if a := e.endpoint.Addr; !k.claimed && (!a.IsValid() || a.IsUnspecified() || a.WithZone("") == k.Local.Addr()) {
			mine = append(mine, i)
		}
	}
	if len(mine) == 0 {
		return 0
	}
	if len(mine) > 1 {
		var states []string
		for _, i := range mine {
			states = append(states, stateText(v.kernel[i].State))
		}
		slices.Sort(states)
		text := strings.Join(slices.Compact(states), "/")
		for _, i := range mine {
			v.kernel[i].twins = text
		}
	}
	e.kernel = mine[0]
	v.kernel[mine[0]].claimed = true
	return 1
}

// enter runs f in a network namespace.
func (p *Pool) enter(netns string, f func() error) error {
	if netns == registry.HostNetns || netns == "" || p.cfg.Enter == nil {
		return f()
	}
	return p.cfg.Enter(netns, f)
}

// surveyLasts is how long the pages after the first one are of the same survey.
const surveyLasts = 10 * time.Second

// keepSurvey remembers a survey for the next page.
func (p *Pool) keepSurvey(v *survey) {
	p.surveys.mu.Lock()
	defer p.surveys.mu.Unlock()
	p.surveys.last = v
	if p.surveys.forget == nil {
		p.surveys.forget = time.AfterFunc(surveyLasts, p.forgetSurvey)
	}
	p.surveys.forget.Reset(surveyLasts)
}

func (p *Pool) forgetSurvey() {
	p.surveys.mu.Lock()
	defer p.surveys.mu.Unlock()
	p.surveys.last = nil
}

// lastSurvey is the one that a page before q's was of, or nil.
func (p *Pool) lastSurvey(q ConnectionQuery) *survey {
	p.surveys.mu.Lock()
	defer p.surveys.mu.Unlock()
	if v := p.surveys.last; q.Before > 0 && v != nil && v.only == q.Reservation {
		return v
	}
	return nil
}
