package registry

import "fmt"

// Policy says what callers may do. Every door asks it through the Registry, so that gRPC, REST and the hand-off agree.
// The zero Policy is the default one for a portd that runs as root: root and portd's own user may do everything; others
// may reserve unprivileged ports for themselves, and change and serve what is theirs only. The service registry is for all to
// read.
type Policy struct {
	UID uint32 // portd's own user
	// FirstUnprivileged is the first port that everybody may reserve (net.ipv4.ip_unprivileged_port_start); 0 means 1024.
	FirstUnprivileged uint16
}

// Admin says whether c may do everything.
func (p Policy) Admin(c Caller) bool { return c.UID == 0 || c.UID == p.UID }

// Administer says whether c may do what concerns portd itself.
func (p Policy) Administer(c Caller, act string) error {
	if p.Admin(c) {
		return nil
	}
	return &DeniedError{c.Principal(), act, "it is for root and the user that portd runs as"}
}

// Reserve says whether c may have e bound with these options for itself.
func (p Policy) Reserve(c Caller, e Endpoint, opt BindOptions) error {
	if p.Admin(c) {
		return nil
	}
	act := "reserve " + e.String()
	first := p.FirstUnprivileged
	if first == 0 {
		first = 1024
	}
	if e.First < first {
		return &DeniedError{c.Principal(), act, fmt.Sprintf("ports below %d are for root and the user that portd runs as", first)}
	}
	if opt.Transparent {
		return &DeniedError{c.Principal(), act, "transparent binding is for root and the user that portd runs as"}
	}
	return nil
}

// Listen says whether c may have connections with these options.
func (p Policy) Listen(c Caller, opt ListenOptions) error {
	if p.Admin(c) || opt.Mark == 0 {
		return nil
	}
	return &DeniedError{c.Principal(), fmt.Sprintf("set the mark %d", opt.Mark), "marks steer the host's routing and filters: they are for root and the user that portd runs as"}
}

// Change says whether c may do act to what owner owns.
func (p Policy) Change(c Caller, owner Principal, act string) error {
	if p.Admin(c) || c.Principal() == owner {
		return nil
	}
	return &DeniedError{c.Principal(), act, fmt.Sprintf("it belongs to %s; only its owner, root and the user that portd runs as may", owner)}
}

// Enter says whether c may reserve, and look for sockets, in a network namespace: whoever lives there, and whoever owns the
// user namespace that it belongs to, for he has every capability in it (user_namespaces(7)).
func (p Policy) Enter(c Caller, netns string, owner uint32) error {
	if p.Admin(c) || c.home() == netns || netns != HostNetns && c.UID == owner {
		return nil
	}
	return &DeniedError{
		c.Principal(), "enter network namespace " + netns,
		"it is for those who live in it, its owner, root and the user that portd runs as",
	}
}

// LeaseProcess says whether c may have a lease that ends with a process of this user.
func (p Policy) LeaseProcess(c Caller, pid int32, uid uint32) error {
	if p.Admin(c) || c.UID == uid {
		return nil
	}
	return &DeniedError{c.Principal(), fmt.Sprintf("lease by process %d", pid), fmt.Sprintf("it is %s's; only your own processes can end your leases", UserName(uid))}
}

// Adopt says whether c may have the socket of a program: what the kernel would let c do by himself (ptrace(2),
// PTRACE_MODE_ATTACH_REALCREDS), or less. Where portd runs as an ordinary user the kernel has its say as well.
func (p Policy) Adopt(c Caller, from Program, e Endpoint) error {
	denied := func(rule string) error {
		return &DeniedError{c.Principal(), fmt.Sprintf("adopt %v from process %d", e, from.PID), rule}
	}
	switch {
	case c.UID == 0:
		return nil
	case c.UID != from.UID:
		return denied(fmt.Sprintf("it is %s's; only your own programs' sockets are yours to take", UserName(from.UID)))
	case from.Changed || c.GID != from.GID:
		return denied("it has changed its user or group, or runs with another group than you: its socket is for root to take")
	case from.Viewer != c.UID:
		return denied("it guards what it has open (PR_SET_DUMPABLE, prctl(2)): its socket is for root to take")
	case from.Privileged && c.UID != p.UID:
		return denied("it has capabilities that you have not: its socket is for root to take")
	case from.Scope > 0:
		return denied(fmt.Sprintf("this host lets no program of yours into another one (kernel.yama.ptrace_scope = %d): its socket is for root to take", from.Scope))
	}
	return nil
}

// EditServices says whether c may do act to the service registry, which is everybody's.
func (p Policy) EditServices(c Caller, act string) error {
	if p.Admin(c) {
		return nil
	}
	return &DeniedError{c.Principal(), act, "the service registry is for root and the user that portd runs as to change"}
}

// CopyState says whether c may do act to all of portd's state.
func (p Policy) CopyState(c Caller, act string) error {
	if p.Admin(c) {
		return nil
	}
	return &DeniedError{c.Principal(), act, "it has what everybody has reserved, and is for root and the user that portd runs as"}
}

// SeeWork says whether c may see the workers and connections of what owner owns.
func (p Policy) SeeWork(c Caller, owner Principal) bool { return p.Admin(c) || c.Principal() == owner }

// SeeProcess says whether c may see which sockets a process has open: what /proc would show it.
func (p Policy) SeeProcess(c Caller, proc Process) bool { return c.UID == 0 || c.UID == proc.Viewer }
