package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// mostUses is how many uses of a range are told one by one.
const mostUses = 20

// printUses prints who has the ports of a question here.
func (c *ctl) printUses(answer *pb.WhoisResponse, q question, several bool) error {
	if !q.isPorts() && !slices.ContainsFunc(answer.GetLookup().GetEntries(), func(e *pb.ServiceEntry) bool { return e.GetPorts() != nil }) {
		return nil // a name without a port is nowhere
	}
	uses := summarize(answer.GetUses())
	switch {
	case len(uses) > 0:
	case slices.ContainsFunc(answer.GetHidden(), func(h string) bool { return strings.HasPrefix(h, registry.NobodyKnows) }):
		// What is hidden says why.
	case several:
		fmt.Fprintf(c.out, "here: nobody has %s\n", q)
	case q.isRange():
		fmt.Fprintln(c.out, "here: nobody has any of them")
	default:
		fmt.Fprintln(c.out, "here: nobody has it")
	}
	more := 0
	if q.isRange() && len(uses) > mostUses {
		more = len(uses) - mostUses
		uses = uses[:mostUses]
	}
	for _, u := range uses {
		fmt.Fprintln(c.out, "here:", printable(u))
	}
	if more > 0 {
		fmt.Fprintf(c.out, "here: and %d more; -o json has all\n", more)
	}
	for _, r := range answer.GetRedirects() {
		fmt.Fprintln(c.out, "here:", printable(redirectText(r)))
	}
	for _, h := range answer.GetHidden() {
		c.say("%s", h)
	}
	return nil
}

// summarize says a line per use: reservations first, then what listens and is bound; the connections of a program
// together, for a busy server has thousands.
func summarize(uses []*pb.PortUse) (lines []string) {
	var others []*pb.PortUse
	for _, u := range uses {
		if r := u.GetReservation(); r != nil {
			text := useText(r)
			if r.GetState() == "recorded" && len(r.GetHolders()) == 0 {
				text += "; no program has bound it"
			}
			lines = append(lines, u.GetEndpoint().GetText()+" "+text)
		} else if u.GetHolder() != nil {
			others = append(others, u)
		}
	}
	slices.SortStableFunc(others, func(a, b *pb.PortUse) int { return cmp.Compare(a.GetHolder().GetState(), b.GetHolder().GetState()) })
	conns, order := map[string]*connections{}, []*connections(nil)
	for _, u := range others {
		h := u.GetHolder()
		proto, ports := protoWord(h.GetEndpoint().GetProtocol()), portsText(h.GetEndpoint().GetPorts())
		whose := ""
		switch h.GetState() {
		case pb.SocketState_SOCKET_STATE_CONNECTED:
			whose = "connections of " + holderName(h)
		case pb.SocketState_SOCKET_STATE_LEFTOVER:
			whose = "connections that are closed, and that the kernel still remembers"
		default:
			lines = append(lines, fmt.Sprintf("%s/%s %s: %s on %s", proto, ports, word(h.GetState()), holderName(h), holderAddr(h)))
			continue
		}
		all := conns[proto+whose]
		if all == nil {
			all = &connections{proto: proto, whose: whose, ports: map[string]bool{}}
			conns[proto+whose] = all
			order = append(order, all)
		}
		all.n++
		all.ports[ports] = true
		all.one = ports
	}
	for _, all := range order {
		lines = append(lines, all.String())
	}
	return lines
}

// connections are those of one program, or of nobody any more.
type connections struct {
	proto, whose string
	ports        map[string]bool
	one          string // of ports
	n            int
}

func (c *connections) String() string {
	if len(c.ports) == 1 {
		return fmt.Sprintf("%s/%s is the port of %s (%d)", c.proto, c.one, c.whose, c.n)
	}
	return fmt.Sprintf("%d ports of %s are of %s (%d)", len(c.ports), c.proto, c.whose, c.n)
}
