package binder

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdbag"
	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/sockdiag"
)

// Sockets that came from the Binder before this one. Where each is bound, and how, the kernel says. Those in bags are asked while their bag is
// open for a moment, and stay parked.

// A place is where a socket is bound, as far as it takes to find it.
type place struct {
	space uint64
	proto registry.Protocol
	port  uint16
	path  string
}

// came is what the kernel says of a socket that came, until it is known what is to become of it. Its protocol and port, or its path,
// are in its endpoint.
type came struct {
	space                        uint64
	addr                         netip.Addr // unmapped, without its zone
	v6only                       bool
	v6unknown                    bool   // kernels before 6.7 or so do not tell of MPTCP whether it is v6only
	device                       string // that it is bound to, by a link-local address too
	mptcp, freebind, transparent bool

	accepts  bool // it listens
	dropping bool // dropAll's filter is on it
	asked    bool // Listen has been called for it
	id       fileID
	cookie   uint64 // the kernel's number of the socket, which is never another's; inode numbers come again on busy hosts
}

// A fileID is the file of a unix socket, as sock_diag has it.
type fileID struct {
	major, minor, ino uint32
}

func (c *came) place(s *socket) place {
	return place{c.space, s.ep.Proto, s.ep.First, s.ep.Path}
}

// inherit takes over what came. What it cannot make out is closed, so that it is in nobody's way.
func (b *Binder) inherit(items []fdstore.Item) {
	if len(items) == 0 {
		return
	}
	b.coming.Store(true)
	b.inherited = make(map[place][]*socket)
	var err error
	if b.space, err = spaceHere(); err != nil {
		b.log.Error("cannot tell in which network namespace portd is", "err", err)
	}
	// A process that died while it was putting sockets from one item into another leaves them in both. Bags come first, and what
	// says that a program has a socket before what does not.
	items = slices.Clone(items)
	slices.SortStableFunc(items, func(x, y fdstore.Item) int { return cmp.Compare(rank(x.Name), rank(y.Name)) })
	who, useless := &inquirer{seen: make(map[uint64]bool, len(items))}, 0
	use := func(it fdstore.Item, err error) {
		if err == nil {
			return
		}
		if !errors.Is(err, errTwice) {
			b.log.Error("a kept descriptor is of no use and closed", "name", it.Name, "err", err)
		}
		b.kept.store.Remove(it.Name)
		_ = unix.Close(it.FD)
		useless++
	}
	bags := slices.IndexFunc(items, func(it fdstore.Item) bool { return rank(it.Name) > 0 })
	if bags < 0 {
		bags = len(items)
	}
	withKeptBack(func() { b.inheritBags(who, items[:bags], use) })
	b.inheritSockets(who, items[bags:], use)
	if useless > 0 {
		b.kept.settle()
	}
}

var errTwice = errors.New("it is in another item, too")

func rank(name string) int {
	switch {
	case strings.HasPrefix(name, "b."):
		return 0
	case strings.HasPrefix(name, "s."):
		return 2
	}
	return 1
}

// inheritSockets takes over sockets with descriptors of their own. Of each the kernel is asked ten things.
func (b *Binder) inheritSockets(who *inquirer, items []fdstore.Item, use func(fdstore.Item, error)) {
	socks, errs := make([]*socket, len(items)), make([]error, len(items))
	atOnce(len(items), func(i int) { socks[i], errs[i] = who.askOne(items[i]) })
	for i, err := range errs {
		if errors.Is(err, fdpass.ErrFDsTruncated) || errors.Is(err, unix.EMFILE) { // several at a time were too many
			if s := socks[i]; s != nil && s.wrap != nil {
				s.close()
			}
			socks[i], errs[i] = who.askOne(items[i])
		}
	}
	for i, s := range socks {
		if errs[i] == nil && !who.first(s) {
			errs[i] = errTwice
		}
	}
	atOnce(len(items), func(i int) {
		if errs[i] == nil {
			errs[i] = socks[i].asItWas()
		}
	})
	for i, s := range socks {
		if errs[i] == nil {
			b.parking.open++
			b.inherited[s.came.place(s)] = append(b.inherited[s.came.place(s)], s)
		} else if s != nil && s.wrap != nil {
			s.close() // the item is the bag
		}
		use(items[i], errs[i])
	}
}

// askOne asks a socket with a descriptor of its own.
func (q *inquirer) askOne(it fdstore.Item) (*socket, error) {
	kind, of, ok := readName(it.Name)
	if !ok {
		return nil, fmt.Errorf("%q is no name of a socket", it.Name)
	}
	s := &socket{fd: it.FD, name: it.Name}
	s.note(of)
	if kind == 'a' {
		if err := s.unwrap(); err != nil {
			return nil, err
		}
	}
	return s, q.ask(s, false)
}

// atOnce calls f for all below n, as many at a time as there are processors.
func atOnce(n int, f func(i int)) {
	var next atomic.Int64
	var all sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 4, n) {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	all.Wait()
}

// note says of the socket what the kernel does not.
func (s *socket) note(of note) {
	s.exposed, s.member, s.salt, s.grouped = of.Lent, of.Member, of.Salt, of.Salt != 0
}

// unwrap takes an adopted socket out of its bag, if it is in one.
func (s *socket) unwrap() error {
	s.adopted, s.before = true, before{reused: true, blocks: true}
	wrap, err := fdbag.From(s.fd)
	if err != nil {
		return nil // it is the socket itself
	}
	payload, err := wrap.Payload()
	if err != nil {
		return err
	}
	var was formerly
	if err := json.Unmarshal(payload, &was); err != nil {
		return fmt.Errorf("what an adopted socket was: %w", err)
	}
	fds, err := wrap.Open()
	if err != nil {
		return err
	}
	for _, fd := range fds[1:] {
		_ = unix.Close(fd)
	}
	s.fd, s.wrap = fds[0], wrap
	s.exposed, s.before = was.Lent, before{was.Reused, was.Blocks, was.Listen}
	return nil
}

// inheritBags looks into bags, as many at a time as there are processors, since there may be hundreds.
func (b *Binder) inheritBags(who *inquirer, items []fdstore.Item, use func(fdstore.Item, error)) {
	type outcome struct {
		in   *bag
		errs []error // of its sockets
		err  error
	}
	outcomes := make([]outcome, len(items))
	atOnce(len(items), func(i int) {
		in, errs, err := who.askAll(items[i])
		outcomes[i] = outcome{in, errs, err}
	})
	for i, o := range outcomes {
		if errors.Is(o.err, fdpass.ErrFDsTruncated) { // several at a time were too many
			o.in, o.errs, o.err = who.askAll(items[i])
		}
		use(items[i], o.err)
		if o.err != nil {
			continue
		}
		for k, s := range o.in.sockets {
			switch err := o.errs[k]; {
			case err != nil:
				b.log.Error("a kept socket is of no use", "name", o.in.name, "err", err)
				s.came = nil
			case !who.first(s):
				s.came = nil
			}
			if s.came == nil {
				b.unknown = append(b.unknown, s)
				continue
			}
			b.inherited[s.came.place(s)] = append(b.inherited[s.came.place(s)], s)
		}
		b.parking.parked += len(o.in.sockets)
		b.parking.bags++
	}
}

// askAll asks all sockets of a bag, which stay in it.
func (q *inquirer) askAll(it fdstore.Item) (in *bag, errs []error, err error) {
	packed, err := fdbag.From(it.FD)
	if err != nil {
		return nil, nil, err
	}
	payload, err := packed.Payload()
	if err != nil {
		return nil, nil, err
	}
	of, err := readNotes(payload, packed.Len())
	if err != nil {
		return nil, nil, err
	}
	fds, err := packed.Open()
	if err != nil {
		return nil, nil, err
	}
	in, errs = &bag{packed, it.Name, make([]*socket, len(fds))}, make([]error, len(fds))
	for i, fd := range fds {
		s := &socket{fd: fd}
		s.note(of[i])
		errs[i] = q.ask(s, !of[i].Lent)
		_ = unix.Close(fd)
		s.fd, s.bag, in.sockets[i] = -1, in, s
	}
	return in, errs, nil
}

// asItWas sets right what the Binder before this one may have left half done when it died.
func (s *socket) asItWas() error {
	c := s.came
	if s.adopted || s.file != nil || s.ep.Proto == registry.Unix {
		return nil
	}
	if s.exposed {
		if s.ep.Proto == registry.TCP && c.dropping && !c.accepts { // of listenExclusively, or a program would get no client
			return s.passAll()
		}
		return nil
	}
	if !s.ep.Proto.Streams() {
		if c.dropping {
			return nil
		}
		c.dropping = true
		return s.silence()
	}
	if s.ep.Proto != registry.TCP {
		return nil
	}
	if err := s.reuse(c.accepts); err != nil { // see listenExclusively
		return err
	}
	if c.dropping && !c.accepts {
		return s.passAll()
	}
	return nil
}

// An inquirer asks the kernel what sockets are.
type inquirer struct {
	seen map[uint64]bool // cookies of those that first was asked about

	mu    sync.Mutex        // guards files
	files map[uint64]fileID // of unix sockets, by their inodes; nil until one is asked for
}

// first notes a socket, and says whether it was in no other item.
func (q *inquirer) first(s *socket) bool {
	twice := q.seen[s.came.cookie]
	q.seen[s.came.cookie] = true
	return !twice
}

// ask may be called at the same time. idle is what does nothing but hold its port, as all do that are in bags and no program had.
func (q *inquirer) ask(s *socket, idle bool) error {
	c := &came{}
	if err := s.stat(); err != nil {
		return err
	}
	at, err := unix.Getsockname(s.fd)
	if err != nil {
		return fmt.Errorf("its address: %w", err)
	}
	if c.cookie, err = unix.GetsockoptUint64(s.fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil {
		return fmt.Errorf("SO_COOKIE: %w", err)
	}
	domain := unix.AF_INET
	switch at := at.(type) {
	case *unix.SockaddrInet4:
		c.addr, s.ep.First = netip.AddrFrom4(at.Addr), uint16(at.Port)
	case *unix.SockaddrInet6:
		domain = unix.AF_INET6
		c.addr, s.ep.First = netip.AddrFrom16(at.Addr).Unmap(), uint16(at.Port)
	case *unix.SockaddrUnix:
		s.ep = registry.Endpoint{Netns: registry.HostNetns, Proto: registry.Unix, Path: at.Name}
		s.came, s.again = c, true
		return q.askPath(s)
	default:
		return fmt.Errorf("it is of no family of portd's: %T", at)
	}
	s.ep.Addr, s.ep.Last = c.addr, s.ep.First
	if s.ep.First == 0 {
		return errors.New("it is not bound to a port")
	}
	proto, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return fmt.Errorf("SO_PROTOCOL: %w", err)
	}
	switch proto {
	case unix.IPPROTO_MPTCP:
		s.ep.Proto, c.mptcp = registry.TCP, true
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP, unix.IPPROTO_UDPLITE:
		s.ep.Proto = registry.Protocol(proto)
	default:
		return fmt.Errorf("it is of protocol %d", proto)
	}
	if c.space, err = spaceOf(s.fd); err != nil {
		return err
	}
	if c.device, err = unix.GetsockoptString(s.fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE); err != nil {
		return fmt.Errorf("SO_BINDTODEVICE: %w", err)
	}
	if c.addr == registry.AnyAddr {
		n, err := unix.GetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		c.v6only, c.v6unknown = n != 0, err != nil
	}
	if c.freebind, err = s.hasIP(domain, unix.IP_FREEBIND, unix.IPV6_FREEBIND); err != nil {
		return fmt.Errorf("IP_FREEBIND: %w", err)
	}
	if c.transparent, err = s.hasIP(domain, unix.IP_TRANSPARENT, unix.IPV6_TRANSPARENT); err != nil {
		return fmt.Errorf("IP_TRANSPARENT: %w", err)
	}
	if idle {
		c.dropping = !s.ep.Proto.Streams()
		s.came, s.again = c, true
		return nil
	}
	if s.ep.Proto.Streams() {
		if c.accepts, err = s.accepts(); err != nil {
			return err
		}
	}
	c.dropping = s.drops()
	s.came, s.again = c, true
	return nil
}

func (q *inquirer) askPath(s *socket) (err error) {
	if s.came.accepts, err = s.accepts(); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.files == nil {
		all, err := sockdiag.ListUnix()
		if err != nil {
			return err
		}
		q.files = make(map[uint64]fileID, len(all))
		for _, o := range all {
			q.files[o.Inode] = fileID{o.Major, o.Minor, o.FileNumber}
		}
	}
	id, ok := q.files[s.inode.Load()]
	if !ok {
		return fmt.Errorf("the kernel does not say which file %s was", s.ep.Path)
	}
	s.came.id = id
	return nil
}

// accepts says whether the socket listens, to the kernel.
func (s *socket) accepts() (bool, error) {
	n, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return false, fmt.Errorf("SO_ACCEPTCONN of %v: %w", s.ep, err)
	}
	return n != 0, nil
}

// drops says whether the filter that dropAll attaches is on the socket.
func (s *socket) drops() bool {
	var have [1]unix.SockFilter
	n := uint32(len(have)) // of instructions; for a longer filter EINVAL
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_SOCKET, unix.SO_GET_FILTER,
		uintptr(unsafe.Pointer(&have)), uintptr(unsafe.Pointer(&n)), 0)
	return errno == 0 && n == 1 && have[0] == drop[0]
}

// siocgskns is SIOCGSKNS (linux/sockios.h): a descriptor of the network namespace that a socket is in. It takes CAP_NET_ADMIN.
const siocgskns = 0x894c

// spaceOf tells network namespaces apart: by the cookie, before Linux 5.14 by the inode number. 0 is one that portd may not know, which
// then is its own, for to have a socket in another one it takes more.
func spaceOf(fd int) (uint64, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if !errors.Is(err, unix.ENOPROTOOPT) {
		if err != nil {
			err = fmt.Errorf("SO_NETNS_COOKIE: %w", err)
		}
		return cookie, err
	}
	ns, err := unix.IoctlRetInt(fd, siocgskns)
	if err != nil {
		return 0, nil
	}
	defer unix.Close(ns)
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil {
		return 0, fmt.Errorf("network namespace: %w", err)
	}
	return st.Ino, nil
}

// spaceHere is spaceOf the calling thread's network namespace.
func spaceHere() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, ranOut(err)
	}
	defer unix.Close(fd)
	return spaceOf(fd)
}

func (b *Binder) spaceHere(netns string) (uint64, error) {
	if netns == registry.HostNetns {
		return b.space, nil
	}
	return spaceHere()
}

// fits says whether a socket that came is bound just as the recipe says.
func (r *recipe) fits(s *socket) bool {
	c := s.came
	return c.addr == r.addr.WithZone("") && (c.addr != registry.AnyAddr || c.v6unknown || c.v6only != r.ep.Dual()) &&
		c.device == cmp.Or(r.ep.Device, r.ep.Addr.Zone()) && c.mptcp == r.opt.MPTCP && c.freebind == r.opt.Freebind &&
		c.transparent == r.opt.Transparent && s.grouped == (r.opt.Group > 1)
}

// take takes what came for a port: one socket, or a whole group in its order. What is in the way of the recipe and does not fit is closed, for
// nobody else can want it. None of them is parked or opened by that.
func (b *Binder) take(r *recipe, port uint16) []*socket {
	if !b.coming.Load() {
		return nil
	}
	b.mu.Lock()
	at := place{space: r.space, proto: r.ep.Proto, port: port}
	var mine, misfits []*socket
	for _, s := range b.inherited[at] {
		switch {
		case r.fits(s) && (r.opt.Group > 1 || len(mine) == 0):
			mine = append(mine, s)
		case r.fits(s), overlap(s.where(r.ep.Netns), r.ep.At(port)):
			misfits = append(misfits, s)
		}
	}
	if r.opt.Group > 1 {
		slices.SortFunc(mine, func(x, y *socket) int { return cmp.Compare(x.member, y.member) })
		if !isGroup(mine, r.opt.Group) {
			mine, misfits = nil, append(misfits, mine...)
		}
	}
	for _, s := range mine {
		b.takeLocked(s, r.ep.At(port))
	}
	for _, s := range misfits {
		b.log.Warn("a kept socket is not as the port is to be bound, and closed", "endpoint", r.ep.At(port))
		b.untieLocked(s)
	}
	b.closeLeftLocked(misfits)
	b.mu.Unlock()
	if len(misfits) > 0 {
		b.kept.settle()
	}
	return mine
}

// isGroup says whether these are n members of one group, in order.
func isGroup(socks []*socket, n int) bool {
	for i, s := range socks {
		if s.member != i || s.salt != socks[0].salt {
			return false
		}
	}
	return len(socks) == n
}

// where is the endpoint of a socket that came.
func (s *socket) where(netns string) registry.Endpoint {
	ep := s.ep
	if s.came != nil && ep.Proto != registry.Unix {
		ep.Netns, ep.Addr, ep.Device = netns, s.came.addr, s.came.device
		ep.V6Only = s.came.v6only && ep.Addr == registry.AnyAddr
	}
	return ep
}

// takeLocked makes of one that came what it was.
func (b *Binder) takeLocked(s *socket, ep registry.Endpoint) {
	b.untieLocked(s)
	s.ep = ep
	if s.came.accepts {
		s.listening = true
		if s.came.dropping && !s.adopted && ep.Proto != registry.Unix {
			s.door = parked
		}
	}
}

// untieLocked takes a socket out of those that nobody has taken.
func (b *Binder) untieLocked(s *socket) {
	at := s.came.place(s)
	b.inherited[at] = slices.DeleteFunc(b.inherited[at], func(o *socket) bool { return o == s })
	if len(b.inherited[at]) == 0 {
		delete(b.inherited, at)
	}
}

// putBack undoes take for those of the sockets that came.
func (b *Binder) putBack(socks []*socket) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range socks {
		if s.came != nil {
			s.listening, s.door = false, admitting
			b.inherited[s.came.place(s)] = append(b.inherited[s.came.place(s)], s)
		}
	}
}
