package natrules

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/portd/portd/internal/registry"
)

// A rule is what a packet may meet: of its branches the first that it belongs to.
type rule []branch

// A branch is what a rule does with some packets. Several are what becomes of a map from ports or addresses to verdicts.
type branch struct {
	match []class
	// some says that more than its class decides whether a packet is meant, such as the device that it comes from: no rule after
	// this one can be left out for it.
	some bool
	does action
	// to is a chain for jump and goto; for redirect it is where the packet goes, as registry.Redirect has it.
	to string
}

type action uint8

const (
	nothing  action = iota // the next rule is asked
	redirect               // to another address, or another port
	jump
	goTo
	goBack
	end // accepted or dropped: no further rule is asked
)

// A table has the rules of each chain, and a name for people.
type table struct {
	name   string
	bases  []string // chains that the kernel asks itself, where packets arrive or programs connect
	chains map[string][]rule
}

// Bounds of a walk. The kernel bounds the depth by as many; the rest is for tables that nobody made for people.
const (
	maxDepth   = 16
	maxClasses = 64
	maxSteps   = 2_000_000
)

// A walker follows packets through a table and notes where they are redirected.
type walker struct {
	table
	steps int
	found []target
	seen  map[target]bool
}

// A target is a redirect, and the addresses that it is for.
type target struct {
	registry.Redirect
	to addresses
}

// redirects is what a table does with packets to this host, each thing once. cut says that there was more than could be followed.
func (t table) redirects() (found []target, cut bool) {
	w := walker{table: t, seen: map[target]bool{}}
	for _, base := range t.bases {
		w.chain(base, everything(), 0)
	}
	return w.found, w.steps > maxSteps
}

// chain follows packets through a chain and returns those that come out of it: at its end, or by a return.
func (w *walker) chain(name string, in []class, depth int) (out []class) {
	if depth > maxDepth {
		return in
	}
	for _, r := range w.chains[name] {
		for _, b := range r {
			if w.steps += len(in) * len(b.match); w.steps > maxSteps || len(in) == 0 {
				return append(out, in...)
			}
			meant := both(in, b.match)
			if len(meant) == 0 || b.does == nothing {
				continue
			}
			var back []class
			switch b.does {
			case redirect:
				w.note(name, meant, b.to)
			case jump:
				back = w.chain(b.to, meant, depth+1)
			case goTo:
				out = append(out, w.chain(b.to, meant, depth+1)...)
			case goBack:
				out = append(out, meant...)
			}
			if b.some || len(in) > maxClasses {
				continue
			}
			// What is left can be as many classes as are taken away; a step here is a small one.
			if w.steps += len(meant) * (len(in) + len(meant)) / 32; w.steps > maxSteps {
				continue
			}
			if rest, exact := without(in, meant); exact {
				in = append(rest, back...)
			}
		}
	}
	return append(out, in...)
}

func (w *walker) note(chain string, meant []class, to string) {
	for _, c := range meant {
		if c.last == 0 {
			continue // port 0 is none
		}
		r := target{registry.Redirect{
			Proto: c.proto, Ports: registry.PortRange{First: max(c.first, 1), Last: c.last}, Address: c.to.String(), To: to,
			Rule: w.name + " " + chain,
		}, c.to}
		if !w.seen[r] {
			w.seen[r] = true
			w.found = append(w.found, r)
		}
	}
}

// toAddress is "172.17.0.2:80", or ":8443" without an address; a range is first-last. It is empty for the same port of this host.
func toAddress(first, last netip.Addr, port, lastPort uint16) string {
	text := ""
	switch {
	case !first.IsValid():
	case last.IsValid() && last != first:
		text = first.String() + "-" + last.String()
	case first.Is6() && port != 0:
		text = "[" + first.String() + "]"
	default:
		text = first.String()
	}
	if port == 0 {
		return text
	}
	text += fmt.Sprintf(":%d", port)
	if lastPort > port {
		text += fmt.Sprintf("-%d", lastPort)
	}
	return text
}

// merged puts together what differs in the protocol alone and is the same for all of them.
func merged(found []target) (out []target) {
	count := map[target]int{}
	for _, r := range found {
		r.Proto = 0
		count[r]++
	}
	all := len(everything())
	for _, r := range found {
		same := r
		same.Proto = 0
		if count[same] == all {
			r = same
		}
		if r.Proto != 0 || !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}
