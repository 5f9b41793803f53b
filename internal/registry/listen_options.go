package registry

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// Bounds of what the kernel takes (net/ipv4/tcp.c: MAX_TCP_KEEPIDLE and so on).
const (
	maxKeepAlive    = 32767 * time.Second
	maxKeepProbes   = 127
	maxUserTimeout  = (1<<31 - 1) * time.Millisecond
	maxDeferAccept  = time.Hour // of a handshake that takes memory
	maxSocketBuffer = 1<<30 - 1
)

// maxGroup is how many sockets a port may have: a descriptor each, and a dozen instructions for each datagram.
const maxGroup = 64

// checkGroup refuses a group where there is none.
func (o BindOptions) checkGroup(e Endpoint, anyPorts *AnyPorts) error {
	const field = "spec.bind_options.group"
	switch {
	case o.Group == 0:
		return nil
	case o.Group < 2 || o.Group > maxGroup:
		return invalid(field, "%d is not allowed; allowed are 2 to %d sockets", o.Group, maxGroup)
	case e.Proto != UDP:
		return invalid(field, "is for udp, not for %v", e.Proto)
	case e.Ports() > 1 || anyPorts != nil && anyPorts.Count > 1:
		return invalid(field, "is for one port at a time, not for several")
	}
	return nil
}

// check refuses options that no kernel takes.
func (o ListenOptions) check() error {
	if o.Backlog < 0 {
		return invalid("options.backlog", "%d is not a number of connections", o.Backlog)
	}
	for _, d := range []struct {
		field string
		have  time.Duration
		unit  time.Duration
		most  time.Duration
		units string
	}{
		{"keep_alive_idle", o.KeepAliveIdle, time.Second, maxKeepAlive, "1s to 32767s, in whole seconds"},
		{"keep_alive_interval", o.KeepAliveInterval, time.Second, maxKeepAlive, "1s to 32767s, in whole seconds"},
		{"user_timeout", o.UserTimeout, time.Millisecond, maxUserTimeout, "1ms to 2147483647ms, in whole milliseconds"},
		{"defer_accept", o.DeferAccept, time.Second, maxDeferAccept, "1s to 1h, in whole seconds"},
	} {
		if d.have < 0 || d.have > d.most || d.have%d.unit != 0 {
			return invalid("options."+d.field, "%v is not allowed; allowed are %s", d.have, d.units)
		}
	}
	for _, n := range []struct {
		field      string
		have, most int
	}{
		{"keep_alive_probes", o.KeepAliveProbes, maxKeepProbes},
		{"fast_open", o.FastOpen, 1<<31 - 1},
		{"receive_buffer", o.ReceiveBuffer, maxSocketBuffer},
		{"send_buffer", o.SendBuffer, maxSocketBuffer},
	} {
		if n.have < 0 || n.have > n.most {
			return invalid("options."+n.field, "%d is not allowed; allowed are 1 to %d", n.have, n.most)
		}
	}
	return o.Handoff.check()
}

// fit refuses options that sockets of a protocol do not have.
func (o ListenOptions) fit(p Protocol) error {
	if p == TCP {
		return nil
	}
	for _, f := range []struct {
		field string
		asked bool
	}{
		{"no_delay", o.NoDelayOff},
		{"keep_alive_idle", o.KeepAliveIdle != 0},
		{"keep_alive_interval", o.KeepAliveInterval != 0},
		{"keep_alive_probes", o.KeepAliveProbes != 0},
		{"user_timeout", o.UserTimeout != 0},
		{"defer_accept", o.DeferAccept != 0},
		{"fast_open", o.FastOpen != 0},
	} {
		if f.asked {
			return invalid("options."+f.field, "is for tcp, not for %v", p)
		}
	}
	for _, f := range []struct {
		field string
		asked bool
	}{{"keep_alive", o.KeepAliveOff}, {"mark", o.Mark != 0}, {"receive_buffer", o.ReceiveBuffer != 0}, {"send_buffer", o.SendBuffer != 0}} {
		if f.asked && p == Unix { // the kernel takes them, and connections do not inherit them (unix_stream_connect)
			return invalid("options."+f.field, "is for ports, and means nothing to connections to a path")
		}
	}
	return nil
}

// listenFields are the options by their names in the API. Each copies one.
var listenFields = map[string]func(to *ListenOptions, from ListenOptions){
	"backlog":             func(to *ListenOptions, from ListenOptions) { to.Backlog = from.Backlog },
	"no_delay":            func(to *ListenOptions, from ListenOptions) { to.NoDelayOff = from.NoDelayOff },
	"keep_alive":          func(to *ListenOptions, from ListenOptions) { to.KeepAliveOff = from.KeepAliveOff },
	"keep_alive_idle":     func(to *ListenOptions, from ListenOptions) { to.KeepAliveIdle = from.KeepAliveIdle },
	"keep_alive_interval": func(to *ListenOptions, from ListenOptions) { to.KeepAliveInterval = from.KeepAliveInterval },
	"keep_alive_probes":   func(to *ListenOptions, from ListenOptions) { to.KeepAliveProbes = from.KeepAliveProbes },
	"user_timeout":        func(to *ListenOptions, from ListenOptions) { to.UserTimeout = from.UserTimeout },
	"defer_accept":        func(to *ListenOptions, from ListenOptions) { to.DeferAccept = from.DeferAccept },
	"fast_open":           func(to *ListenOptions, from ListenOptions) { to.FastOpen = from.FastOpen },
	"mark":                func(to *ListenOptions, from ListenOptions) { to.Mark = from.Mark },
	"receive_buffer":      func(to *ListenOptions, from ListenOptions) { to.ReceiveBuffer = from.ReceiveBuffer },
	"send_buffer":         func(to *ListenOptions, from ListenOptions) { to.SendBuffer = from.SendBuffer },

	"handoff":                 func(to *ListenOptions, from ListenOptions) { to.Handoff = from.Handoff },
	"handoff.strategy":        func(to *ListenOptions, from ListenOptions) { to.Handoff.Strategy = from.Handoff.Strategy },
	"handoff.without_worker":  func(to *ListenOptions, from ListenOptions) { to.Handoff.WithoutWorker = from.Handoff.WithoutWorker },
	"handoff.refuse_after":    func(to *ListenOptions, from ListenOptions) { to.Handoff.RefuseAfter = from.Handoff.RefuseAfter },
	"handoff.take_back_after": func(to *ListenOptions, from ListenOptions) { to.Handoff.TakeBackAfter = from.Handoff.TakeBackAfter },
}

// A Listen says how endpoints are to listen.
type Listen struct {
	Options ListenOptions
	// Keep lets what listens already go on with the options that it has, but for those of Fields: names as the API spells them.
	Keep   bool
	Fields []string
}

// of is the options of an endpoint that had these, or nil for none.
func (l Listen) of(had *ListenOptions) ListenOptions {
	if !l.Keep {
		return l.Options
	}
	var out ListenOptions
	if had != nil {
		out = *had
	}
	for _, name := range l.Fields {
		listenFields[name](&out, l.Options)
	}
	return out
}

func (l Listen) check() error {
	for _, name := range l.Fields {
		if listenFields[name] == nil {
			return invalid("update_mask", "%q is not an option of a listener; known are %s", name,
				strings.Join(slices.Sorted(maps.Keys(listenFields)), ", "))
		}
	}
	return l.Options.check()
}
