package binder

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// An option is one of a listening socket that its connections inherit, or that says how they are made.
type option struct {
	name  string // of the constant, for people
	field string // of registry.ListenOptions, as the API spells it
	level int
	opt   int
	ask   func(registry.ListenOptions) int       // as setsockopt(2) takes it; 0 where nothing is asked for
	tell  func(o *registry.ListenOptions, n int) // of what getsockopt(2) gave
	none  string                                 // the sysctl that says what it is without being asked for; empty: 0
	lock  int                                    // of SO_BUF_LOCK, for the size of a buffer
}

// options are all but the backlog. Each is inherited as far as it means anything to a connection: see docs/KERNEL.md.
var options = [...]option{
	{
		"SO_KEEPALIVE", "keep_alive", unix.SOL_SOCKET, unix.SO_KEEPALIVE,
		func(o registry.ListenOptions) int { return btoi(!o.KeepAliveOff) },
		func(o *registry.ListenOptions, n int) { o.KeepAliveOff = n == 0 }, "", 0,
	},
	{
		"SO_MARK", "mark", unix.SOL_SOCKET, unix.SO_MARK,
		func(o registry.ListenOptions) int { return int(int32(o.Mark)) },
		func(o *registry.ListenOptions, n int) { o.Mark = uint32(n) }, "", 0,
	},
	{
		"SO_RCVBUF", "receive_buffer", unix.SOL_SOCKET, unix.SO_RCVBUF,
		func(o registry.ListenOptions) int { return o.ReceiveBuffer },
		func(o *registry.ListenOptions, n int) { o.ReceiveBuffer = n / 2 }, "net/ipv4/tcp_rmem", recvLock,
	},
	{
		"SO_SNDBUF", "send_buffer", unix.SOL_SOCKET, unix.SO_SNDBUF,
		func(o registry.ListenOptions) int { return o.SendBuffer },
		func(o *registry.ListenOptions, n int) { o.SendBuffer = n / 2 }, "net/ipv4/tcp_wmem", sendLock,
	},
	{
		"TCP_NODELAY", "no_delay", unix.IPPROTO_TCP, unix.TCP_NODELAY,
		func(o registry.ListenOptions) int { return btoi(!o.NoDelayOff) },
		func(o *registry.ListenOptions, n int) { o.NoDelayOff = n == 0 }, "", 0,
	},
	{
		"TCP_KEEPIDLE", "keep_alive_idle", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE,
		func(o registry.ListenOptions) int { return int(o.KeepAliveIdle / time.Second) },
		func(o *registry.ListenOptions, n int) { o.KeepAliveIdle = time.Duration(n) * time.Second }, "net/ipv4/tcp_keepalive_time", 0,
	},
	{
		"TCP_KEEPINTVL", "keep_alive_interval", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL,
		func(o registry.ListenOptions) int { return int(o.KeepAliveInterval / time.Second) },
		func(o *registry.ListenOptions, n int) { o.KeepAliveInterval = time.Duration(n) * time.Second }, "net/ipv4/tcp_keepalive_intvl", 0,
	},
	{
		"TCP_KEEPCNT", "keep_alive_probes", unix.IPPROTO_TCP, unix.TCP_KEEPCNT,
		func(o registry.ListenOptions) int { return o.KeepAliveProbes },
		func(o *registry.ListenOptions, n int) { o.KeepAliveProbes = n }, "net/ipv4/tcp_keepalive_probes", 0,
	},
	{
		"TCP_USER_TIMEOUT", "user_timeout", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT,
		func(o registry.ListenOptions) int { return int(o.UserTimeout / time.Millisecond) },
		func(o *registry.ListenOptions, n int) { o.UserTimeout = time.Duration(n) * time.Millisecond }, "", 0,
	},
	{
		"TCP_DEFER_ACCEPT", "defer_accept", unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT,
		func(o registry.ListenOptions) int { return int(o.DeferAccept / time.Second) },
		func(o *registry.ListenOptions, n int) { o.DeferAccept = time.Duration(n) * time.Second }, "", 0,
	},
	{
		"TCP_FASTOPEN", "fast_open", unix.IPPROTO_TCP, unix.TCP_FASTOPEN,
		func(o registry.ListenOptions) int { return o.FastOpen },
		func(o *registry.ListenOptions, n int) { o.FastOpen = n }, "", 0,
	},
}

// The bits of SO_BUF_LOCK, which Linux has since 5.14: a size that was set, which the kernel does not change by itself.
const (
	soBufLock = 72
	sendLock  = 1
	recvLock  = 2
)

// inherit sets what accepted connections inherit from their listener, and undoes what is not asked for any more, as well as what
// others may have set where they had the socket.
func (s *socket) inherit(opt registry.ListenOptions, others bool) error {
	for i := range options {
		o, bit := &options[i], uint16(1)<<i
		if !o.fits(s) {
			continue
		}
		n := o.ask(opt)
		switch {
		case n != 0:
			if err := s.set(o.level, o.opt, n); err != nil {
				return s.optionError(o, err)
			}
			s.tuned |= bit
		case s.tuned&bit != 0 || others:
			if err := s.untune(o); err != nil {
				return err
			}
			s.tuned &^= bit
		}
	}
	return nil
}

// fits says whether the option means anything to connections of the socket's protocol: none does to those of a path.
func (o *option) fits(s *socket) bool {
	return s.ep.Proto == registry.TCP || o.level == unix.SOL_SOCKET && s.ep.Proto != registry.Unix
}

// untune has an option as it is in a new socket.
func (s *socket) untune(o *option) error {
	if o.lock != 0 {
		return s.unlock(o)
	}
	n, err := s.byDefault(o)
	if err != nil {
		return err
	}
	if have, err := unix.GetsockoptInt(s.fd, o.level, o.opt); err != nil || have == n {
		return nil // MPTCP does not have them all
	}
	if err := s.set(o.level, o.opt, n); err != nil {
		return s.optionError(o, err)
	}
	return nil
}

// unlock has the kernel size a buffer by itself again, from its default on.
func (s *socket) unlock(o *option) error {
	locks, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, soBufLock)
	if err == nil && locks&o.lock == 0 {
		return nil
	}
	n, defErr := s.byDefault(o)
	if defErr != nil {
		return defErr
	}
	if err := s.set(o.level, o.opt, n/2); err != nil {
		return s.optionError(o, err)
	}
	if err != nil {
		return nil // before Linux 5.14 it keeps the size
	}
	// MPTCP keeps the size, too.
	if err := s.set(unix.SOL_SOCKET, soBufLock, locks&^o.lock); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("set SO_BUF_LOCK: %w", err)
	}
	return nil
}

// byDefault is what a new socket has. Of the three numbers that TCP's sysctls of buffers have it is the one in the middle.
func (s *socket) byDefault(o *option) (n int, err error) {
	switch {
	case o.none == "":
	case o.lock == 0:
		err = readSysctl(o.none, &n)
	case s.ep.Proto == registry.TCP:
		var least int
		err = readSysctl(o.none, &least, &n)
	case o.lock == recvLock:
		err = readSysctl("net/core/rmem_default", &n)
	default:
		err = readSysctl("net/core/wmem_default", &n)
	}
	return n, err
}

// readOptions reads back what the kernel made of the options.
func (s *socket) readOptions() (opt registry.ListenOptions, err error) {
	locks, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, soBufLock)
	for i := range options {
		o := &options[i]
		if err != nil && o.ask(s.opt) != 0 {
			locks |= o.lock // before Linux 5.14
		}
		if !o.fits(s) || o.lock&^locks != 0 {
			continue // a buffer that the kernel sizes by itself has no size to speak of
		}
		n, err := unix.GetsockoptInt(s.fd, o.level, o.opt)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOPROTOOPT) { // MPTCP: it could not be set either
			continue
		}
		if err != nil {
			return opt, fmt.Errorf("%s of %v: %w", o.name, s.ep, err)
		}
		o.tell(&opt, n)
	}
	if s.ep.Proto != registry.TCP || s.door == refusing {
		opt.Backlog = min(cmp.Or(s.opt.Backlog, 4096), maxBacklog())
		return opt, nil
	}
	info, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return opt, fmt.Errorf("TCP_INFO of %v: %w", s.ep, err)
	}
	opt.Backlog = int(info.Sacked) // of a listener that is its backlog (tcp_get_info in the kernel)
	return opt, nil
}

// askedFor is options as they would have been asked for: without what is so by itself.
func (s *socket) askedFor(opt registry.ListenOptions) registry.ListenOptions {
	for i := range options {
		o := &options[i]
		if o.none == "" || o.lock != 0 {
			continue
		}
		if n, err := s.byDefault(o); err == nil && o.ask(opt) == n {
			o.tell(&opt, 0)
		}
	}
	return opt
}

// MayListen says what of the options this host leaves without effect, though the kernel takes them.
func (b *Binder) MayListen(netns string, opt registry.ListenOptions) error {
	if opt.Handoff.WithoutWorker == registry.Park {
		if err := b.in(netns, mayPark); err != nil {
			return err
		}
	}
	if opt.FastOpen == 0 {
		return nil
	}
	const servers = 2
	flags := servers
	err := b.in(netns, func() error { return readSysctl("net/ipv4/tcp_fastopen", &flags) })
	if err != nil || flags&servers != 0 {
		return err
	}
	return &registry.UnsupportedError{
		What: "fast_open", Why: fmt.Sprintf("this host does not let servers have it (net.ipv4.tcp_fastopen = %d): sysctl net.ipv4.tcp_fastopen=%d", flags, flags|servers),
	}
}

// mayPark asks the kernel: a filter on a TCP socket takes CAP_NET_ADMIN on some, on one for datagrams nothing.
func mayPark() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return ranOut(err)
	}
	defer unix.Close(fd)
	if err := (&socket{fd: fd}).dropAll(); errors.Is(err, unix.EPERM) {
		return noCapability("park clients", "this kernel lets portd filter what a TCP socket gets only with CAP_NET_ADMIN (SO_ATTACH_FILTER, socket(7)); "+
			"clients can wait or be refused")
	}
	return nil
}

func (s *socket) optionError(o *option, err error) error {
	switch {
	case errors.Is(err, unix.EPERM) && o.opt == unix.SO_MARK:
		return noCapability(o.field, "portd may not set it without CAP_NET_ADMIN (SO_MARK, socket(7))")
	case errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.EOPNOTSUPP):
		what := s.ep.Proto.String()
		if proto, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err == nil && proto == unix.IPPROTO_MPTCP {
			what = "Multipath TCP"
		}
		return &registry.UnsupportedError{What: o.field, Why: fmt.Sprintf("this kernel does not have it for %s (%s: %v)", what, o.name, err)}
	}
	return fmt.Errorf("set %s: %w", o.name, err)
}
