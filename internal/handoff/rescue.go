package handoff

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/holder"
	"github.com/portd/portd/internal/wire"
)

// A portd that was killed may have had connections in its hands: accepted, and not sent yet, or sent and not closed. They are in its table of
// descriptors, which its holder (package holder) keeps open. The ledger says which numbers they had and in which portd's table; one that
// had just been accepted, and not written down, is found among all that is connected, since the ledger says from where it came.
//
// What is taken is in this process's table, and so in its own holder's, before the ledger says so, and the ledger says so before the old
// holder ends. So each connection is somewhere where the ledger points to, or where it says to look, whenever this portd dies too.

// A rescue is what a dead portd's ledger and holders are to its successor.
type rescue struct {
	ledger  *ledger
	rests   map[uint32]*holder.Rest // by the holder's pid
	log     *slog.Logger
	items   []fdstore.Item
	cookies map[uint64]uint32 // places of the sockets in items, which may be in two tables
	partly  bool              // not all that the ledger says was in hand has been taken
}

// Rescue takes what portds before this one had in their hands when they were killed, and ends their holders, with which everything else of theirs
// is closed. The holders are among items, and stay the caller's there, to be Removed from the keeper; so is the ledger, which notes
// what was taken. mine is the pid of this process's own holder, 0 where it has none. It is called after that was Put, and before
// anything that a dead portd may have locked is opened; not where the portd before still lives. What it returns is for Restore.
func Rescue(items []fdstore.Item, mine int, log *slog.Logger) []fdstore.Item {
	r := &rescue{rests: make(map[uint32]*holder.Rest), cookies: make(map[uint64]uint32), log: log}
	var names []string
	for _, it := range items {
		if pid := holder.PIDOf(it.Name); pid != 0 && pid != mine {
			names = append(names, it.Name)
			fd, err := unix.FcntlInt(uintptr(it.FD), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				log.Error("what portd had in hand cannot be rescued", "err", err)
				continue
			}
			rest, err := holder.Open(it.Name, fd)
			if err != nil {
				log.Warn("the process that kept portd's connections has ended too", "holder", pid, "err", err)
				continue
			}
			r.rests[uint32(pid)] = rest
		}
	}
	defer func() {
		for pid, rest := range r.rests {
			if err := rest.Close(); err != nil {
				log.Error("ports and connections of the portd before stay open", "holder", pid, "err", err)
			}
		}
	}()
	for _, it := range items {
		if it.Name == "ledger" && len(names) > 0 {
			if err := r.open(it.FD, mine); err != nil {
				log.Error("what portd had in hand cannot be rescued", "err", err)
				break
			}
			defer unix.Munmap(r.ledger.mem)
			r.hands()
			r.accepted()
			r.takenBack(items)
			if len(r.items) > 0 {
				log.Info("took over what the portd before had in hand", "connections", len(r.items))
			}
			break
		}
	}
	return r.items
}

// open maps the ledger, and begins a new incarnation, so that each place says whose number is in it.
func (r *rescue) open(fd, mine int) error {
	mem, err := fdpass.MapPage(fd, ledgerSize)
	if err != nil {
		return err
	}
	l := ledgerIn(fd, mem)
	if err := l.check(); err != nil {
		_ = unix.Munmap(mem)
		return err
	}
	l.begin(uint32(mine))
	r.ledger = l
	return nil
}

// rest is of the portd of that incarnation; nil where there is none.
func (r *rescue) rest(incarnation uint32) *holder.Rest {
	pid := r.ledger.holderOf(incarnation)
	return r.rests[pid] // none is 0
}

// hands takes what the ledger says was in hand.
func (r *rescue) hands() {
	byRest := make(map[*holder.Rest][]grip)
	for _, g := range r.ledger.inHand() {
		if rest := r.rest(g.incarnation); rest != nil {
			byRest[rest] = append(byRest[rest], g)
		}
	}
	for rest, grips := range byRest {
		numbers := make([]int, len(grips))
		for i, g := range grips {
			numbers[i] = g.fd
		}
		fds, err := rest.Take(numbers)
		if err != nil {
			r.log.Error("what portd had in hand cannot be rescued", "err", err)
			r.partly = true
			continue
		}
		for i, fd := range fds {
			// Between close and the note that it is closed the number may have become another thing's.
			if fd >= 0 && !grips[i].is(fd) {
				closeRaw(fd)
				fd = -1
			}
			if fd >= 0 {
				r.cookies[cookie(fd)] = grips[i].at
				r.ledger.regrip(grips[i].at, fd)
				r.items = append(r.items, fdstore.Item{Name: "c." + strconv.FormatUint(uint64(grips[i].at), 36), FD: fd})
			}
		}
	}
}

// peerOf reads the address of the other end of a connection, and says whether there is one.
func peerOf(fd int, from *unix.RawSockaddrInet6) bool {
	size := uint32(unix.SizeofSockaddrInet6)
	_, _, errno := unix.RawSyscall(unix.SYS_GETPEERNAME, uintptr(fd), uintptr(unsafe.Pointer(from)), uintptr(unsafe.Pointer(&size)))
	if size == 0 {
		from.Family = unix.AF_UNSPEC
	}
	return errno == 0
}

// is says whether fd is the connection that the place is of, as far as its peer tells.
func (h *hand) is(fd int) bool {
	var from unix.RawSockaddrInet6
	if !peerOf(fd, &from) {
		// Its client has ended it: so nobody is there to miss it, but that it had been accepted is counted.
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		return err == nil && (domain == unix.AF_UNIX) == (h.family == wire.FamilyUnix) && connection(fd)
	}
	peer := peerAddr(&from)
	return peer.Family == h.family && peer.IP == h.peer && peer.Port == h.port
}

// accepted finds the connections that were accepted and not written down.
func (r *rescue) accepted() {
	for _, s := range r.ledger.seats() {
		listener, from := *s.accepting, *s.acceptingFrom
		rest := r.rest(uint32(from >> 32))
		if listener == 0 || rest == nil {
			continue
		}
		if err := r.find(rest, int(uint32(from))-1, listener); err != nil {
			r.log.Error("a connection that portd was accepting may be lost", "err", err)
			continue
		}
		s.accepts(nil)
	}
}

func (r *rescue) find(rest *holder.Rest, number int, listener uint32) error {
	socket, err := rest.Get(number)
	if errors.Is(err, unix.EBADF) {
		return nil
	}
	if err != nil {
		return err
	}
	defer closeRaw(socket)
	where, err := placeOf(socket)
	if err != nil {
		return err
	}
	numbers, err := rest.Connected()
	if err != nil {
		return err
	}
	return r.each(rest, numbers, func(fd int) bool {
		here, err := placeOf(fd)
		if _, known := r.cookies[cookie(fd)]; known || err != nil || !where.has(here) || !connection(fd) {
			return false
		}
		return r.write(fd, listener, 0, doubt{})
	})
}

// each gives f descriptors, which are closed again where it is false.
func (r *rescue) each(rest *holder.Rest, numbers []int, f func(fd int) (wanted bool)) error {
	r.ledger.recount()
	for len(numbers) > 0 { // there may be more of them than this process may have open beside its own
		some := numbers[:min(64, len(numbers))]
		numbers = numbers[len(some):]
		fds, err := rest.Take(some)
		if err != nil {
			return err
		}
		for _, fd := range fds {
			if fd >= 0 && !f(fd) {
				closeRaw(fd)
			}
		}
	}
	return nil
}

// takenBack finds out about the message that portd was taking back from a worker's queue, and may have received: see ledger.retaking. Which
// listener's a connection is that stands nowhere is found out later, from where it is bound.
func (r *rescue) takenBack(items []fdstore.Item) {
	l := r.ledger
	rest := r.rest(uint32(l.head.retaking))
	if l.head.retaking == 0 || rest == nil || r.partly {
		return
	}
	var control place // whose connections portd has for other reasons
	for _, it := range items {
		if it.Name == "control" {
			control, _ = placeOf(it.FD)
		}
	}
	numbers, err := rest.Connected()
	if err == nil {
		seen := make(map[uint32]bool)
		err = r.each(rest, numbers, func(fd int) bool {
			if at, known := r.cookies[cookie(fd)]; known {
				if seen[at] && l.hands[at].doubt.tenant == l.head.retakingFrom {
					l.certain(at)
				}
				seen[at] = true
				return false
			}
			here, err := placeOf(fd)
			if err != nil || here.port == 0 && here.path == "" || control.has(here) || !connection(fd) {
				return false
			}
			return r.write(fd, 0, wire.Redelivered|counted, doubt{tenant: l.head.retakingFrom})
		})
	}
	if err != nil {
		r.log.Error("connections that portd was taking back may be lost", "err", err)
		return
	}
	l.retaken()
}

// write notes a connection that was found. It is false where there is no room for that.
func (r *rescue) write(fd int, listener, flags uint32, d doubt) bool {
	var from unix.RawSockaddrInet6
	c := wire.Connection{Accepted: time.Now().UnixNano(), Flags: flags}
	if peerOf(fd, &from) {
		c.Peer = peerAddr(&from)
	}
	at := r.ledger.vacant()
	if at == 0 {
		r.log.Error("a connection that portd had accepted is lost: the ledger is full")
		return false
	}
	r.ledger.note(at, fd, listener, &c, d)
	r.cookies[cookie(fd)] = at
	r.items = append(r.items, fdstore.Item{Name: "c." + strconv.FormatUint(uint64(at), 36), FD: fd})
	return true
}

// A place is where a socket is bound.
type place struct {
	domain, protocol int
	netns            uint64
	port             int
	addr             [16]byte
	path             string
}

func placeOf(fd int) (p place, err error) {
	if p.domain, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
		return p, fmt.Errorf("where a socket is bound: %w", err)
	}
	p.protocol, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if p.protocol == unix.IPPROTO_MPTCP {
		p.protocol = unix.IPPROTO_TCP // what it accepts may be either
	}
	p.netns, _ = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE) // Linux 5.14
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return p, fmt.Errorf("where a socket is bound: %w", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		p.port = sa.Port
		copy(p.addr[:], sa.Addr[:])
	case *unix.SockaddrInet6:
		p.port, p.addr = sa.Port, sa.Addr
	case *unix.SockaddrUnix:
		p.path = sa.Name
	}
	return p, nil
}

// has says whether a connection that was accepted from a socket at p can be at c.
func (p place) has(c place) bool {
	if p.addr == ([16]byte{}) {
		c.addr = p.addr
	}
	return p == c && (p.domain != unix.AF_UNIX || p.path != "")
}

// connection says whether fd is a stream, not a socket that listens.
func connection(fd int) bool {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	listens, lerr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && kind == unix.SOCK_STREAM && lerr == nil && listens == 0
}

// cookie tells sockets apart (SO_COOKIE).
func cookie(fd int) uint64 {
	c, _ := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	return c
}
