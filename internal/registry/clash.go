package registry

import (
	"fmt"
	"strings"

	"github.com/portd/portd/internal/ianadb"
)

// maxClashes is how many of its clashes are told of one entry: a wide range may have thousands.
const maxClashes = 8

// clashesWithIANA says, a sentence each, which services IANA gives an entry's ports to, and which ports its name. A
// service under its own name and port is no clash: that is how the host says more about it.
func clashesWithIANA(iana *ianadb.DB, e ianadb.Entry) []string {
	var all []string
	more := 0
	directory := ianadb.Directory{IANA: iana}
	for r := range directory.ByPorts(ianadb.Range{First: e.First, Last: e.Last}, e.Protocol) {
		if r.Status() != ianadb.StatusAssigned || strings.EqualFold(r.Name(), e.Name) {
			continue
		}
		if len(all) == maxClashes {
			more++
			continue
		}
		ports, _ := r.Ports()
		all = append(all, fmt.Sprintf("%s/%v is %s (IANA)", portsText(ports.First, ports.Last), e.Protocol, r.Name()))
	}
	if more > 0 {
		all = append(all, fmt.Sprintf("so are %d more of its ports (IANA)", more))
	}
	var where []string
	for _, ports := range iana.Ports(e.Name, e.Protocol) {
		if ports.First <= e.Last && e.First <= ports.Last {
			return all
		}
		where = append(where, portsText(ports.First, ports.Last)+"/"+e.Protocol.String())
	}
	if len(where) > 0 {
		all = append(all, fmt.Sprintf("%s is %s (IANA)", e.Name, strings.Join(where, ", ")))
	}
	return all
}

// clashesWithOwn says the same of the host's other entries.
func clashesWithOwn(own []*OwnService, e ianadb.Entry) []string {
	var all []string
	for _, o := range own {
		h := o.Entry
		if h.Protocol == e.Protocol && h.First <= e.Last && e.First <= h.Last {
			all = append(all, fmt.Sprintf("%s/%v is %s (this host's own)", portsText(h.First, h.Last), h.Protocol, h.Name))
		}
		if len(all) == maxClashes {
			break
		}
	}
	return all
}

// entryText names an entry: "myapp 8123/tcp".
func entryText(e ianadb.Entry) string {
	return fmt.Sprintf("%s %s/%v", e.Name, portsText(e.First, e.Last), e.Protocol)
}
