package binder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/sockdiag"
)

// Adopt takes a duplicate of a listening socket that a running program has, and has it under the key from then on, as if it had
// bound the port itself; the Observer is told. Nothing changes for the program, and Release gives the socket back to it.
//
// The errors are those of registry.Binder.Adopt. A socket is adopted only if it is the one that sock_diag shows on the port: the
// inode says so, of the program's descriptor before it is duplicated and of the duplicate after.
func (b *Binder) Adopt(ctx context.Context, want registry.Adopt) (got registry.Adoption, err error) {
	p, err := sockdiag.OpenProgram(int(want.PID))
	if err != nil {
		return got, notThere(want, err)
	}
	defer p.Close()
	if _, err := mayAdopt(p, want); err != nil {
		return got, err
	}
	b.adoptMu.Lock()
	defer b.adoptMu.Unlock()
	s, err := b.duplicate(ctx, p, want)
	if err != nil {
		return got, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	// Once more: meanwhile it may have become another program, of another user (execve(2)).
	from, err := mayAdopt(p, want)
	if err != nil {
		return got, err
	}
	got, err = s.adoption()
	if err != nil {
		return got, err
	}
	owners, _, err := sockdiag.Owners(ctx, s.inode.Load())
	if err != nil {
		return got, fmt.Errorf("who else has %v: %w", s.ep, err)
	}
	for _, o := range owners[s.inode.Load()] {
		if o.PID != os.Getpid() {
			got.Others = append(got.Others, registry.Process(o))
		}
	}
	got.From = from.Process
	// A listening socket refuses everybody, with SO_REUSEADDR too, and its connections inherit that: see listenExclusively.
	if err := s.reuse(true); err != nil {
		return got, err
	}
	s.listening, s.opt, s.before.opt = true, got.Listen, got.Listen
	b.kept.put(s)
	b.add(want.Key, []*socket{s})
	b.observer.Listening(want.Key, []registry.Socket{{Endpoint: s.ep, FD: s.fd, Adopted: true}}, got.Listen)
	return got, nil
}

// mayAdopt asks whether the socket may be taken from the process as it is now.
func mayAdopt(p *sockdiag.Program, want registry.Adopt) (from registry.Program, err error) {
	r, err := p.Rights()
	if err != nil {
		return from, notThere(want, err)
	}
	from = registry.Program{Process: registry.Process(r.Process), GID: r.GID, Changed: r.Changed, Privileged: r.Privileged}
	_ = readSysctl("kernel/yama/ptrace_scope", &from.Scope) // a kernel without the file has no such scope
	return from, want.May(from)
}

// duplicate finds the socket and takes a duplicate, which has everything of a socket but how it listens. It is the caller's.
func (b *Binder) duplicate(ctx context.Context, p *sockdiag.Program, want registry.Adopt) (_ *socket, err error) {
	var listening []sockdiag.Socket
	err = b.in(want.Endpoint.Netns, func() (err error) {
		listening, err = sockdiag.List(ctx, sockdiag.Filter{
			Protocols: []sockdiag.Protocol{sockdiag.Protocol(want.Endpoint.Proto)}, First: want.Endpoint.First,
			States: []sockdiag.State{sockdiag.Listening},
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find the socket on %v: %w", want.Endpoint, err)
	}
	var inodes []uint64
	for _, s := range listening {
		inodes = append(inodes, s.Inode)
	}
	fds, err := p.Descriptors(inodes...)
	if err != nil {
		return nil, notThere(want, err)
	}
	var candidates []found
	for _, s := range listening {
		f := found{s, want.Endpoint.Netns}
		if _, has := fds[s.Inode]; has && (want.AnyAddr || endpointOf(f) == want.Endpoint) {
			candidates = append(candidates, f)
		}
	}
	if len(candidates) == 0 {
		return nil, &registry.NotListeningError{PID: want.PID, Want: want.Endpoint}
	}
	one, err := only(candidates, want)
	if err != nil {
		return nil, err
	}
	if b.owns(one) {
		return nil, &registry.TakenError{Want: endpointOf(one)}
	}
	fd, err := p.Duplicate(fds[one.Inode])
	if err != nil {
		return nil, notThere(want, err)
	}
	s := &socket{fd: fd, ep: endpointOf(one)}
	if err := s.isAdopted(one, want); err != nil {
		s.close()
		return nil, err
	}
	limit, err := b.descriptorLimit()
	if err == nil && fd >= limit {
		err = exhausted(fmt.Errorf("the last of %s are kept for connections and files", openFiles()))
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// only is the socket that is meant, if there is just one.
func only(all []found, want registry.Adopt) (found, error) {
	var texts []string
	for _, s := range all {
		if text := endpointOf(s).String(); !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	if len(texts) == 1 {
		return all[0], nil // of several on one endpoint each has SO_REUSEPORT, and is refused for it
	}
	return all[0], &registry.InvalidError{
		Field: "endpoint", Reason: fmt.Sprintf("process %d listens on %s: say which", want.PID, strings.Join(texts, " and ")),
	}
}

// owns says whether a socket is the Binder's already.
func (b *Binder) owns(s found) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.ContainsFunc(b.at[spotOf(endpointOf(s))], func(own *socket) bool { return own.inode.Load() == s.Inode })
}

// isAdopted looks at the duplicate: it is the socket that was found, it listens still, and it can be had alone.
func (s *socket) isAdopted(one found, want registry.Adopt) error {
	if err := s.stat(); err != nil {
		return err
	}
	if s.inode.Load() != one.Inode {
		return &registry.NotListeningError{PID: want.PID, Want: s.ep}
	}
	accepts, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return fmt.Errorf("SO_ACCEPTCONN of %v: %w", s.ep, err)
	}
	if accepts == 0 {
		return &registry.NotListeningError{PID: want.PID, Want: s.ep}
	}
	group, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	if err != nil {
		return fmt.Errorf("SO_REUSEPORT of %v: %w", s.ep, err)
	}
	if group != 0 {
		return &registry.UnsupportedError{
			What: "adopt " + s.ep.String(),
			Why: "the socket has SO_REUSEPORT: any program of that user can join it and gets a share of the connections, so nobody can own the port; " +
				"start the program without that option (in nginx: without reuseport), then adopt it",
			Code: "REUSEPORT",
		}
	}
	reused, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return fmt.Errorf("SO_REUSEADDR of %v: %w", s.ep, err)
	}
	flags, err := unix.FcntlInt(uintptr(s.fd), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("flags of %v: %w", s.ep, err)
	}
	s.adopted, s.before.reused, s.before.blocks = true, reused != 0, flags&unix.O_NONBLOCK == 0
	return nil
}

// adoption reads back how the socket is bound and how it listens.
func (s *socket) adoption() (got registry.Adoption, err error) {
	got.Endpoint = s.ep
	proto, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return got, fmt.Errorf("SO_PROTOCOL of %v: %w", s.ep, err)
	}
	got.Bind.MPTCP = proto == unix.IPPROTO_MPTCP
	domain, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return got, fmt.Errorf("SO_DOMAIN of %v: %w", s.ep, err)
	}
	if got.Bind.Freebind, err = s.hasIP(domain, unix.IP_FREEBIND, unix.IPV6_FREEBIND); err != nil {
		return got, fmt.Errorf("IP_FREEBIND of %v: %w", s.ep, err)
	}
	if got.Bind.Transparent, err = s.hasIP(domain, unix.IP_TRANSPARENT, unix.IPV6_TRANSPARENT); err != nil {
		return got, fmt.Errorf("IP_TRANSPARENT of %v: %w", s.ep, err)
	}
	listen, err := s.readOptions()
	got.Listen = s.askedFor(listen)
	return got, err
}

// hasIP is whether an option of IPv4 or IPv6 is set. One that cannot be asked for, as with MPTCP on older kernels, could not be
// set either.
func (s *socket) hasIP(domain, v4, v6 int) (bool, error) {
	level, name := unix.IPPROTO_IP, v4
	if domain == unix.AF_INET6 {
		level, name = unix.IPPROTO_IPV6, v6
	}
	n, err := unix.GetsockoptInt(s.fd, level, name)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOPROTOOPT) {
		return false, nil
	}
	return n != 0, err
}

// before is how a program had the socket that was adopted from it, as far as portd changes that.
type before struct {
	reused, blocks bool // SO_REUSEADDR; no O_NONBLOCK
	opt            registry.ListenOptions
}

// giveBack leaves an adopted socket as if it had never been adopted: the program that has it goes on. changed says that it has other
// options than it had.
func (s *socket) giveBack(changed bool) {
	_ = s.reuse(s.before.reused)
	if s.exposed {
		_ = unix.SetNonblock(s.fd, !s.before.blocks)
	}
	if changed {
		_ = s.inherit(s.before.opt, true)
		_ = s.listen(s.before.opt)
	}
}

// bindAgain has an adopted socket hold its port after it has listened. If the program let the kernel choose the port (bind of
// port 0) the socket lost it when it stopped listening; said by its number it is held. If not, it is bound already.
func (s *socket) bindAgain(at unix.Sockaddr) error {
	err := unix.Bind(s.fd, at)
	if errors.Is(err, unix.EADDRINUSE) { // by connections from before it was adopted, that have no SO_REUSEADDR; or by a stranger
		if err := s.reuse(true); err != nil {
			return err
		}
		err = unix.Bind(s.fd, at)
		if err := s.reuse(false); err != nil {
			return err
		}
	}
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("hold %v after it listened: %w", s.ep, err)
	}
	return nil
}

// notThere says what an errno of looking into a process means to who wants its socket.
func notThere(want registry.Adopt, err error) error {
	what := fmt.Sprintf("adopt %v from process %d", want.Endpoint, want.PID)
	switch {
	case errors.Is(err, unix.ESRCH):
		return &noProcess{want.PID}
	case errors.Is(err, unix.EBADF): // closed since it was found
		return &registry.NotListeningError{PID: want.PID, Want: want.Endpoint}
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		if lacking := lackingForProcesses(); len(lacking) > 0 {
			return noCapability(what, fmt.Sprintf("the kernel lets portd take it only with %s (pidfd_getfd(2), proc(5))", strings.Join(lacking, " and ")))
		}
		return &registry.UnsupportedError{
			What: what, Why: fmt.Sprintf("the kernel does not let portd take it (%v): a security module, or a user namespace that the program is outside of", err),
		}
	case errors.Is(err, unix.ENOSYS):
		return &registry.UnsupportedError{What: what, Why: "this kernel cannot hand out another program's socket (pidfd_getfd(2), Linux 5.6)"}
	}
	return fmt.Errorf("%s: %w", what, ranOut(err))
}

// noProcess says that nothing runs under a pid.
type noProcess struct{ pid int32 }

func (e *noProcess) Error() string {
	return fmt.Sprintf("no process with the pid %d is running, as portd sees it", e.pid)
}
func (e *noProcess) Is(target error) bool { return target == registry.ErrNotFound }
