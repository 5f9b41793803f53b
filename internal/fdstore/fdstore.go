// Package fdstore keeps duplicates of a process's descriptors with another process, so that what they refer to outlives the first. It
// speaks the words of systemd's file descriptor store: FDSTORE=1, FDSTOREREMOVE=1, FDNAME=, FDPOLL=0 and BARRIER=1, each with its
// descriptor in SCM_RIGHTS (sd_pid_notify_with_fds(3)).
//
// What is in the store, Items, comes back to the process's successor in one of three ways that look alike: from systemd by
// LISTEN_FDS, from portd's own keeper, and from a predecessor that goes on until the successor is ready.
package fdstore

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a keeper may have no room for a word, or not do what it was told, until it is given up.
const patience = 2 * time.Second

// glance is how much of its patience a process uses up at a time, and at most while it is stopped.
const glance = patience / 8

// An Item is a descriptor under the name that it has in the store. Names are ASCII letters, digits, '.' and '-', at most 32 of them.
type Item struct {
	Name string
	FD   int
}

// A Store is what a process has with its keeper. All methods may be called at the same time; those of a nil Store do nothing, as do
// those of one that has no keeper.
//
// Nothing here fails to the caller: a keeper that is gone, or does not read for two seconds, is given up, a new one gets all that is in
// the store, and where there can be none the log and Kept say so.
type Store struct {
	log *slog.Logger

	// mu guards what follows, and is held over a send so that words go out in the order in which they were said; a send ends within
	// patience.
	mu      sync.Mutex
	items   map[string]item
	gone    map[string]bool // the keeper has them and is to let go of them
	due     []string        // names of items and gone that the keeper is to hear of, in the order of the calls
	link    *link           // nil: there is no keeper
	max     int             // what the service manager takes, 0: not known
	muted   bool
	closed  bool
	leaving bool  // STOPPING=1 was said: nobody is to start this process again
	keepers int   // of portd's that there have been
	broken  error // why the link was lost, where that was not told yet
	lost    func(error)
	refused bool // the last descriptor was refused for want of room in messages: nobody waits for that twice
	again   *time.Timer
	counter int64 // of the last name that was given

	barriers
}

type item struct {
	fd   int // of this process, open for as long as it is in here
	told bool
}

// New is a Store without a keeper.
func New(log *slog.Logger) *Store {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Store{log: log, items: make(map[string]item), gone: make(map[string]bool)}
}

// Put keeps a duplicate of fd under name. fd must stay open until Remove has returned. When Put returns the death of this
// process loses nothing any more; so it comes before what was done is answered.
//
// To Put an inherited item again, under its name, costs nothing. A name that is there with something else has the new one
// afterwards; with systemd there is an instant in which it has neither.
func (s *Store) Put(name string, fd int) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.items[name]
	if ok && old.told && same(old.fd, fd) {
		s.items[name] = item{fd, true}
		return
	}
	s.items[name] = item{fd: fd}
	s.dueLocked(name, ok && old.told)
	s.tellLocked()
}

// Remove lets go of what has these names, soon: Settle says when. The descriptors are the caller's to close now. What the keeper has
// keeps a port bound and a connection open; so release waits for Settle before it answers.
func (s *Store) Remove(names ...string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		old, ok := s.items[name]
		delete(s.items, name)
		if ok && old.told {
			s.dueLocked(name, true)
		}
	}
	s.tellLocked()
}

// Items is what is in the store, by name; the descriptors are the Store's users'.
func (s *Store) Items() []Item {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.itemsLocked()
}

func (s *Store) itemsLocked() []Item {
	all := make([]Item, 0, len(s.items))
	for name, it := range s.items {
		all = append(all, Item{name, it.fd})
	}
	slices.SortFunc(all, func(a, b Item) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Kept says whether what is put outlives this process. It is false without a keeper, and while the keeper lacks something that the
// kernel would not pass to it.
func (s *Store) Kept() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link != nil && s.link.keeps && (s.muted || len(s.due) == 0)
}

// Keeper says which keeper of portd's this is, counted from 1, and whether it is there just now; 0 where there has been none. A service
// manager is no keeper of portd's.
func (s *Store) Keeper() (n int, there bool) {
	if s == nil {
		return 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keepers, s.keepers > 0 && s.link != nil && s.broken == nil
}

// KeeperPID is the pid of portd's keeper; 0 where there is none just now, or it is not known.
func (s *Store) KeeperPID() int {
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == nil || s.broken != nil || s.link.keeper == nil {
		return 0
	}
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", s.link.keeper.Fd()))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(info)) { // proc_pid_fdinfo(5)
		if text, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, _ := strconv.Atoi(strings.TrimSpace(text))
			return max(pid, 0) // -1: it is dead
		}
	}
	return 0
}

// Managed says whether a service manager keeps what is in the store.
func (s *Store) Managed() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link != nil && !s.link.own && s.link.keeps
}

// NextName is prefix with the next number that no item has had, in base 36, after it: "s." gives "s.1f".
func (s *Store) NextName(prefix string) string {
	if s == nil {
		return prefix + "0"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counter++
	return prefix + strconv.FormatInt(s.counter, 36)
}

// Inherit enters what the keeper has already, the items that it gave to this process. They are in the store until somebody Removes
// them, also those that nobody wants.
func (s *Store) Inherit(items []Item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range items {
		if _, twice := s.items[it.Name]; !twice { // systemd does not mind two of a name
			s.items[it.Name] = item{it.FD, true}
		}
		number := it.Name[strings.LastIndexByte(it.Name, '.')+1:]
		if n, err := strconv.ParseInt(number, 36, 64); err == nil && number != it.Name {
			s.counter = max(s.counter, n)
		}
	}
}

// Mute makes the Store collect what it is told and say nothing to its keeper, who is another process's for now; nor is one that
// goes away replaced.
func (s *Store) Mute() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.muted = true
}

// Unmute tells the keeper what has come together, and whatever is said from now on. A keeper that went away meanwhile is replaced.
func (s *Store) Unmute() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.muted = false
	if s.broken != nil {
		s.loseLocked(s.link, s.broken)
		return
	}
	s.tellLocked()
}

// Restate tells portd's keeper all that is in the store anew, and to let go of whatever else it has: another process has spoken to it.
// A service manager is told what is due only; what it has too much it gives to the next start, which closes it.
func (s *Store) Restate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.muted = false
	if s.link == nil || !s.link.own || s.broken != nil {
		if s.broken != nil {
			s.loseLocked(s.link, s.broken)
		}
		s.tellLocked()
		return
	}
	s.restateLocked()
}

func (s *Store) restateLocked() {
	l := s.link
	s.startOverLocked()
	if !s.sayLocked("RESET=1") {
		return
	}
	s.tellLocked()
	if s.link == l {
		s.sayLocked("RESET=0")
	}
}

// startOverLocked makes everything due, as a keeper is to hear it that has nothing.
func (s *Store) startOverLocked() {
	s.due, s.gone, s.refused = s.due[:0], make(map[string]bool), false
	for _, it := range s.itemsLocked() {
		s.items[it.Name] = item{fd: it.FD}
		s.due = append(s.due, it.Name)
	}
}

// dueLocked notes that the keeper is to hear of name. Who attaches another one says all anyhow.
func (s *Store) dueLocked(name string, has bool) {
	if s.link == nil || !s.link.keeps {
		return
	}
	if has {
		s.gone[name] = true
	}
	s.due = append(s.due, name)
}

// tellLocked sends what is due. What the kernel will not pass for now (ETOOMANYREFS) stays due, and what is to be let go of does not
// wait for it.
func (s *Store) tellLocked() {
	if s.muted || s.link == nil || !s.link.keeps {
		return
	}
	var stuck []string
	for _, name := range s.due {
		it, ok := s.items[name]
		if s.gone[name] && (!ok || !s.link.own) { // portd's keeper puts the new one in the place of the old by itself
			if !s.sayLocked("FDSTOREREMOVE=1\nFDNAME=" + name) {
				return
			}
		}
		delete(s.gone, name)
		if !ok || it.told {
			continue
		}
		if len(stuck) > 0 { // neither would this one go
			stuck = append(stuck, name)
			continue
		}
		switch err := s.storeLocked(name, it.fd); {
		case err == nil:
			it.told = true
			s.items[name] = it
		case s.link == nil:
			return
		default:
			stuck = append(stuck, name)
		}
	}
	s.due = append(s.due[:0], stuck...)
	if len(stuck) > 0 && s.again == nil {
		s.again = time.AfterFunc(time.Second, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.again = nil
			s.tellLocked()
		})
	}
}

// storeLocked says FDSTORE=1. With an error and a link the descriptor stays due.
func (s *Store) storeLocked(name string, fd int) error {
	if s.max > 0 && len(s.items) == s.max+1 {
		s.log.Warn("the service manager keeps no more descriptors; raise FileDescriptorStoreMax= in the unit", "max", s.max)
	}
	wait := patience
	if s.refused {
		wait = 0
	}
	err := s.link.send("FDSTORE=1\nFDNAME="+name+"\nFDPOLL=0", wait, fd)
	switch {
	case err == nil:
		s.refused = false
	case isFull(err):
		if !s.refused {
			s.log.Warn("descriptors are not kept for now: they would be lost if portd died", "first", name, "err", err)
		}
		s.refused = true
	case !s.link.own:
		s.log.Warn("the service manager could not be told what to keep", "name", name, "err", err)
	default:
		s.loseLocked(s.link, err)
	}
	return err
}

// sayLocked says words that carry no descriptor. It is false where there is no keeper, or none any more.
func (s *Store) sayLocked(words string, fds ...int) bool {
	if s.link == nil {
		return false
	}
	if err := s.link.send(words, patience, fds...); err != nil {
		s.loseLocked(s.link, err)
		return false
	}
	return true
}

// same says whether two descriptors are of one open file description (F_DUPFD_QUERY of Linux 6.10, or kcmp(2)); where the kernel
// does not tell, not.
func same(a, b int) bool {
	if a == b {
		return true
	}
	const dupfdQuery = 1024 + 3
	if is, err := unix.FcntlInt(uintptr(a), dupfdQuery, b); err == nil {
		return is == 1
	}
	pid := uintptr(unix.Getpid())
	const kcmpFile = 0
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(a), uintptr(b), 0)
	return errno == 0 && order == 0
}

// A barrier is closed when the keeper has come so far.
type barrier chan struct{}

type barriers struct {
	bmu  sync.Mutex
	next barrier // what those wait for who come now; nil: nobody has come
	busy bool    // somebody waits for the one before
}

// Settle returns once the keeper has done all that Put and Remove said before (BARRIER=1), or is given up, or ctx has ended. Callers
// at the same time wait for one barrier together.
func (s *Store) Settle(ctx context.Context) {
	if s == nil {
		return
	}
	s.bmu.Lock()
	if s.next == nil {
		s.next = make(barrier)
	}
	mine := s.next
	if !s.busy {
		s.busy = true
		go s.passBarriers()
	}
	s.bmu.Unlock()
	select {
	case <-mine:
	case <-ctx.Done():
	}
}

// passBarriers goes on for as long as somebody waits for one.
func (s *Store) passBarriers() {
	for {
		s.bmu.Lock()
		b := s.next
		s.next = nil
		s.busy = b != nil
		s.bmu.Unlock()
		if b == nil {
			return
		}
		s.passBarrier()
		close(b)
	}
}
