package registry

import "github.com/portd/portd/internal/ianadb"

// nodePorts is the range that Kubernetes gives out by default (--service-node-port-range); a port of portd's own choice
// is not taken from it.
var nodePorts = PortRange{30000, 32767}

// An apartness is what the service registry, as it is in one Services, has in mind for the ports of each protocol.
type apartness struct {
	services *Services
	assigned map[Protocol]*portSet // to a service, of IANA's or the host's own
	kept     map[Protocol]*portSet // not assigned and not free either: reserved, retired, or never to be assigned
}

// apartness is that of the services as they are now. It is made once for each, which takes a millisecond.
func (r *Registry) apartness() *apartness {
	services := r.Services()
	if a := r.apart.Load(); a != nil && a.services == services {
		return a
	}
	a := &apartness{services, map[Protocol]*portSet{}, map[Protocol]*portSet{}}
	for _, k := range protocols {
		assigned, kept := new(portSet), new(portSet)
		if proto, known := ianaProtocol(k.p); known {
			for port := range len(portSet{}) * 64 {
				switch services.Status(uint16(port), proto) {
				case ianadb.StatusUnassigned:
				case ianadb.StatusAssigned:
					assigned.add(uint16(port))
				default:
					kept.add(uint16(port))
				}
			}
		}
		a.assigned[k.p], a.kept[k.p] = assigned, kept
	}
	r.apart.Store(a)
	return a
}
