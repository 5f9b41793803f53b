package registry

import (
	"fmt"
	"strings"
)

// An ExhaustedError says what stood in the way of a port of portd's choice. Of the ports From, each is counted once, by
// the first of these that applies. It is an ErrExhausted.
type ExhaustedError struct {
	Protos []Protocol
	Count  int // contiguous ports wanted
	From   PortRange

	// Where From is portd's own choice: ports that it does not take because they are in the kernel's ephemeral range, are
	// node ports of Kubernetes, are assigned to a service, or are kept by IANA without one.
	Ephemeral, NodePorts, Assigned, Kept int

	Reserved int     // here, by anybody
	InUse    int     // the kernel refused them, or showed a socket of another program there
	Example  *Holder // one such socket, as the caller may see it; nil where none is seen
	Free     int     // ports of which no run is long enough
	Longest  int     // run of these

	ephemeral PortRange
}

func (e *ExhaustedError) Is(target error) bool { return target == ErrExhausted }

func (e *ExhaustedError) Error() string {
	what := "port"
	if e.Count > 1 {
		what = fmt.Sprintf("run of %d ports", e.Count)
	}
	why := []string{
		fmt.Sprintf("%d are reserved here", e.Reserved),
		fmt.Sprintf("%d in use by other programs", e.InUse),
	}
	if e.Example != nil {
		why[1] += fmt.Sprintf(" (%v)", e.Example)
	}
	for _, k := range []struct {
		n    int
		what string
	}{
		{e.Ephemeral, fmt.Sprintf("in the kernel's ephemeral range %d-%d", e.ephemeral.First, e.ephemeral.Last)},
		{e.NodePorts, fmt.Sprintf("node ports of Kubernetes (%d-%d)", nodePorts.First, nodePorts.Last)},
		{e.Assigned, "assigned to services"},
		{e.Kept, "kept by IANA"},
	} {
		if k.n > 0 {
			why = append(why, fmt.Sprintf("%d %s", k.n, k.what))
		}
	}
	if e.Free > 0 {
		why = append(why, fmt.Sprintf("%d free, at most %d in a row", e.Free, e.Longest))
	}
	next := "release something, or ask for a range of your own (within)"
	if e.Ephemeral+e.NodePorts+e.Assigned+e.Kept == 0 {
		next = "release something, or ask for another range"
	}
	return fmt.Sprintf("no free %s for %s in %d-%d: of %d ports %s; %s", what, protoList(e.Protos), e.From.First, e.From.Last,
		int(e.From.Last)-int(e.From.First)+1, strings.Join(why, ", "), next)
}

func protoList(ps []Protocol) string {
	s := make([]string, len(ps))
	for i, p := range ps {
		s[i] = p.String()
	}
	return strings.Join(s, ",")
}
