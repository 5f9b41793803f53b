package binder

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdbag"
	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/registry"
)

// The keeper has a duplicate of each descriptor that the Binder has: of a socket with one of its own, and of each bag. It comes before
// whoever asked is answered, and goes before the descriptor is closed. Its name says what the kernel does not of a socket:
//
//	s.<n>                    that it is portd's alone
//	l.<n>                    that a program has it or had it, and may have it still
//	a.<n>                    a bag of one that a program had first; its payload is a formerly
//	g.<member>.<salt>.<n>    which it is of a group, and how datagrams are divided among that; the salt in base 36
//	b.<n>                    a bag of parked ones; its payload are those that are not plain: notes

// keeping is what the Binder has with the keeper.
type keeping struct {
	store *fdstore.Store // nil: none

	mu sync.Mutex // guards the names of sockets: holdPathAgain changes one while others lend it. Taken after all other locks
}

// put has the keeper have a socket that has a descriptor and no name yet.
func (k *keeping) put(socks ...*socket) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range socks {
		k.putLocked(s, s.fd)
	}
}

func (k *keeping) putLocked(s *socket, fd int) {
	if k.store == nil {
		return
	}
	switch {
	case s.adopted:
		s.name = k.store.NextName("a.")
		// Where there can be no bag the successor knows less of it, and has it all the same.
		if wrap, err := fdbag.Pack([]int{fd}, s.formerly()); err == nil {
			s.wrap, fd = wrap, wrap.FD()
		}
	case s.grouped:
		s.name = k.store.NextName(fmt.Sprintf("g.%d.%s.", s.member, strconv.FormatUint(uint64(s.salt), 36)))
	case s.exposed:
		s.name = k.store.NextName("l.")
	default:
		s.name = k.store.NextName("s.")
	}
	k.store.Put(s.name, fd)
}

// expose notes, with the keeper too, that a program is about to have the sockets.
func (k *keeping) expose(socks ...*socket) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range socks {
		if s.exposed {
			continue
		}
		s.exposed = true
		if k.store == nil || s.grouped { // of a group nobody is plain
			continue
		}
		name, wrap := s.name, s.wrap
		s.wrap = nil // there may be no new one
		k.putLocked(s, s.fd)
		k.store.Remove(name)
		if wrap != nil {
			_ = wrap.Close()
		}
	}
}

// drop has the keeper let go of sockets that are about to be closed, or are kept in a bag by now.
func (k *keeping) drop(socks ...*socket) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for _, s := range socks {
		if s.name != "" {
			names = append(names, s.name)
			s.name = ""
		}
	}
	if len(names) > 0 {
		k.store.Remove(names...)
	}
	for _, s := range socks {
		if s.wrap != nil {
			_ = s.wrap.Close()
			s.wrap = nil
		}
	}
}

// replace puts another socket in the place of s's, under the number of its descriptor. fd stays the caller's.
func (k *keeping) replace(s *socket, fd int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	old := s.name
	k.putLocked(s, fd)
	if old != "" {
		k.store.Remove(old)
	}
	err := unix.Dup3(fd, s.fd, unix.O_CLOEXEC)
	if k.store != nil {
		k.store.Put(s.name, s.fd)
	}
	return err
}

// settle returns when the keeper has done what it was told.
func (k *keeping) settle() { k.store.Settle(context.Background()) }

// leave leaves everything with the keeper.
func (k *keeping) leave() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.store = nil
}

// formerly is what there is to be known of an adopted socket for it to be given back.
type formerly struct {
	Reused, Blocks bool // as in before
	Lent           bool
	Listen         registry.ListenOptions
}

func (s *socket) formerly() []byte {
	text, err := json.Marshal(formerly{s.before.reused, s.before.blocks, s.exposed, s.before.opt})
	if err != nil {
		return nil
	}
	return text
}

// A note is of a socket in a bag.
type note struct {
	At     int // its place in there
	Lent   bool
	Member int    `json:",omitzero"`
	Salt   uint32 `json:",omitzero"` // of a group; 0: it is in none
}

func notes(socks []*socket) []byte {
	var all []note
	for i, s := range socks {
		if s.exposed || s.grouped {
			all = append(all, note{i, s.exposed, s.member, s.salt})
		}
	}
	if len(all) == 0 {
		return nil
	}
	text, err := json.Marshal(all)
	if err != nil {
		return nil
	}
	return text
}

// readNotes are those of a bag of n sockets, by their place. Of others there is the zero note.
func readNotes(payload []byte, n int) ([]note, error) {
	all := make([]note, n)
	if len(payload) == 0 {
		return all, nil
	}
	var some []note
	if err := json.Unmarshal(payload, &some); err != nil {
		return nil, fmt.Errorf("notes of a bag: %w", err)
	}
	for _, one := range some {
		if one.At < 0 || one.At >= n {
			return nil, fmt.Errorf("notes of a bag of %d: there is one of socket %d", n, one.At)
		}
		all[one.At] = one
	}
	return all, nil
}

// readName is what the name of a single socket says, and its kind: 's', 'l', 'a' or 'g'. ok is false where it is none.
func readName(name string) (kind byte, of note, ok bool) {
	parts := strings.Split(name, ".")
	switch parts[0] {
	case "s", "a":
		return parts[0][0], note{}, len(parts) == 2
	case "l":
		return 'l', note{Lent: true}, len(parts) == 2
	case "g":
		if len(parts) != 4 {
			return 0, of, false
		}
		member, err := strconv.ParseUint(parts[1], 10, 8)
		if err != nil {
			return 0, of, false
		}
		salt, err := strconv.ParseUint(parts[2], 36, 32)
		return 'g', note{Lent: true, Member: int(member), Salt: uint32(salt)}, err == nil && salt != 0
	}
	return 0, of, false
}
