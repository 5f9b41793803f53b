package registry

import (
	"fmt"
	"strings"
	"time"
)

// An ExhaustedError says what stood in the way of a port of portd's choice. Of the ports From, each is counted once, by
// the first of these that applies. It is an ErrExhausted.
type ExhaustedError struct {
	Protos []Protocol
	Count  int    // contiguous ports wanted
	Pool   string // that they were to come from; empty: none
	From   []PortRange

	// Ports that the pool leaves out because they are in the kernel's ephemeral range, are node ports of Kubernetes, are
	// assigned to a service, or are kept by IANA without one.
	Ephemeral, NodePorts, Assigned, Kept int

	Reserved int     // here, by anybody
	InUse    int     // the kernel refused them, or showed a socket of another program there
	Example  *Holder // one such socket, as the caller may see it; nil where none is seen
	// Quarantined ports were chosen for others and let go, and are kept from the caller; the first of them until Until.
	Quarantined int
	Until       time.Time
	Free        int // ports of which no run is long enough
	Longest     int // run of these

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
		{e.Quarantined, fmt.Sprintf("in quarantine for those who had them, the first until %s", e.Until.UTC().Format(time.RFC3339))},
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
	from, total := portRangesText(e.From), 0
	for _, r := range e.From {
		total += int(r.Last) - int(r.First) + 1
	}
	next := "release something, or ask for another range"
	if e.Pool != "" {
		from = fmt.Sprintf("the pool %q (%s)", e.Pool, from)
		next = "release something, or ask for a range of your own (within)"
	}
	return fmt.Sprintf("no free %s for %s in %s: of %d ports %s; %s", what, protoList(e.Protos), from, total, strings.Join(why, ", "), next)
}

// portRangesText spells ranges for people, not too many of them.
func portRangesText(all []PortRange) string {
	const enough = 4
	var texts []string
	for _, r := range all[:min(len(all), enough)] {
		texts = append(texts, portsText(r.First, r.Last))
	}
	if more := len(all) - enough; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(texts, ", ")
}

func protoList(ps []Protocol) string {
	s := make([]string, len(ps))
	for i, p := range ps {
		s[i] = p.String()
	}
	return strings.Join(s, ",")
}
