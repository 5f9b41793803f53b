package binder

import (
	"container/list"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdbag"
	"github.com/portd/portd/internal/registry"
)

// A socket is one raw socket on one port. Go's netpoller does not know it.
type socket struct {
	fd    int               // -1 while it is in a bag
	inode atomic.Uint64     // holdPathAgain changes it while others look
	ep    registry.Endpoint // one port, or a path
	file  *file             // of a unix socket

	adopted bool   // it is a program's, which portd has too
	before  before // of an adopted one
	exposed bool   // was ever lent: a program may have let others onto its port; guarded by Binder.mu
	grouped bool   // is one of a group: see bindGroup
	member  int    // which it is
	salt    uint32 // of the group's steering, the same for all of it; never 0
	tuned   uint16 // which of options were asked for and set; guarded by holding.work

	// Guarded by Binder.mu: Bind and Listen write them, for one key one at a time; others read them.
	listening bool
	door      door                   // of one that is to listen; written with work held, too
	opt       registry.ListenOptions // of the last Listen

	// Guarded by Binder.mu once its endpoint is bound; fd likewise, which stays as it is while the holding is in use.
	of   *holding      // whose it is; nil while it is nobody's
	bag  *bag          // where it is parked, or nil
	idle *list.Element // its place among those that may be parked, or nil
	came *came         // of one that was given to New, until Unclaimed

	again bool // it was given to New

	// Guarded by keeping.mu.
	name string     // that the keeper has it by; empty while it is in a bag, and where there is no keeper
	wrap *fdbag.Bag // in which the keeper has an adopted one
}

func (s *socket) set(level, name, value int) error {
	return unix.SetsockoptInt(s.fd, level, name, value)
}

func (s *socket) setIP(domain, v4, v6 int) error {
	if domain == unix.AF_INET6 {
		return s.set(unix.IPPROTO_IPV6, v6, 1)
	}
	return s.set(unix.IPPROTO_IP, v4, 1)
}

// stat finds the inode by which sock_diag and /proc know the socket.
func (s *socket) stat() error {
	var st unix.Stat_t
	if err := unix.Fstat(s.fd, &st); err != nil {
		return fmt.Errorf("inode of the socket of %v: %w", s.ep, err)
	}
	s.inode.Store(st.Ino)
	return nil
}

// reuse sets SO_REUSEADDR: what decides whether others can bind the port beside this socket.
func (s *socket) reuse(on bool) error {
	if err := s.set(unix.SOL_SOCKET, unix.SO_REUSEADDR, btoi(on)); err != nil {
		return fmt.Errorf("set SO_REUSEADDR of %v to %t: %w", s.ep, on, err)
	}
	return nil
}

// drop is a filter that lets nothing through.
var drop = [1]unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}

// dropAll makes the kernel drop every packet that arrives, without an answer of any kind.
func (s *socket) dropAll() error {
	return unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]})
}

// passAll undoes dropAll.
func (s *socket) passAll() error {
	err := s.set(unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	// A program that had the socket before took the filter off (ENOENT), or locked what it has (EPERM; SO_LOCK_FILTER in socket(7)).
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("detach the filter of %v: %w", s.ep, err)
	}
	return nil
}

// revoke takes from duplicates of the socket, which others have where it is lent, what they could do with it. Whoever has one
// can set it up anew, but no longer by accident.
func (s *socket) revoke(lent bool) {
	// A socket with SO_REUSEADDR that does not listen keeps nobody out.
	_ = s.reuse(false)
	if lent && !s.ep.Proto.Streams() {
		_ = s.dropAll()
	}
	_ = unix.Shutdown(s.fd, unix.SHUT_RDWR) // ENOTCONN where it did not listen, and works all the same
}

// close is the end of the descriptor, whatever close(2) says.
func (s *socket) close() { _ = unix.Close(s.fd) }

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
