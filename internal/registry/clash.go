package registry

import (
	"fmt"
	"strings"

	"github.com/portd/portd/internal/ianadb"
)

// clashesWithIANA says, a sentence each, which services IANA gives an entry's ports to, and which ports its name. A
// service under its own name and port is no clash: that is how the host says more about it.
func clashesWithIANA(iana *ianadb.DB, e ianadb.Entry) []string {
	var others, where []string
	directory := ianadb.Directory{IANA: iana}
	for r := range directory.ByPorts(ianadb.Range{First: e.First, Last: e.Last}, e.Protocol) {
		if r.Status() == ianadb.StatusAssigned && !strings.EqualFold(r.Name(), e.Name) {
			ports, _ := r.Ports()
			others = append(others, fmt.Sprintf("%s/%v is %s (IANA)", portsText(ports.First, ports.Last), e.Protocol, r.Name()))
		}
	}
	others = few(others, "%d more services have ports of it (IANA)")
	for _, ports := range iana.Ports(e.Name, e.Protocol) {
		if ports.First <= e.Last && e.First <= ports.Last {
			return others
		}
		where = append(where, portsText(ports.First, ports.Last)+"/"+e.Protocol.String())
	}
	if len(where) > 0 {
		others = append(others, fmt.Sprintf("%s is %s (IANA)", e.Name, strings.Join(few(where, "%d more"), ", ")))
	}
	return others
}

// clashesWithOwn says which of the host's other entries have ports of an entry.
func clashesWithOwn(own []*OwnService, e ianadb.Entry) []string {
	var others []string
	for _, o := range own {
		h := o.Entry
		if h.Protocol == e.Protocol && h.First <= e.Last && e.First <= h.Last {
			others = append(others, fmt.Sprintf("%s/%v is %s (this host's own)", portsText(h.First, h.Last), h.Protocol, h.Name))
		}
	}
	return few(others, "%d more have ports of it (this host's own)")
}

// maxClashes is how many of its clashes are told of one entry: a wide range may have thousands.
const maxClashes = 8

// few are the first of many, and how many more there are.
func few(many []string, more string) []string {
	if n := len(many) - maxClashes; n > 0 {
		return append(many[:maxClashes], fmt.Sprintf(more, n))
	}
	return many
}

// entryText names an entry: "myapp 8123/tcp".
func entryText(e ianadb.Entry) string {
	return fmt.Sprintf("%s %s/%v", e.Name, portsText(e.First, e.Last), e.Protocol)
}
