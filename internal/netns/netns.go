// Package netns finds the network namespaces of this host, gives each one name, and runs code in them.
//
// A namespace is known by its inode number (network_namespaces(7)), which no other gets while a descriptor of it is open, and
// over the life of a descriptor by its cookie (SO_NETNS_COOKIE), which no other gets before the next boot.
package netns

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/peercred"
	"github.com/portd/portd/internal/registry"
)

// Dir is where ip-netns(8) keeps the names of namespaces.
const Dir = "/run/netns"

// A Host is a registry.Namespaces. It must be closed.
type Host struct {
	log    *slog.Logger
	dir    string
	bootID string
	own    int // descriptor of portd's own namespace
	inode  uint64
	cookie peercred.NetNS // of portd's own; zero before Linux 5.14

	mu     sync.Mutex // guards all below; never held over a system call that can wait
	kept   map[string]*kept
	unseen map[string]int // how often in a row a kept one was not seen to be anybody's
	blind  bool           // the log was told that some processes cannot be looked into
}

// A kept namespace can be entered by its name.
type kept struct {
	registry.Namespace
	owner uint32
	fd    int
	uses  int
	seen  bool // somebody was in it at some look
}

// New makes a Host of the calling thread's namespace. bootID is this boot's.
func New(bootID string, log *slog.Logger) (*Host, error) {
	h := &Host{log: log, dir: Dir, bootID: bootID, kept: map[string]*kept{}, unseen: map[string]int{}}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if h.own, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open portd's own network namespace: %w", err)
	}
	if h.inode, err = inodeOf(h.own); err == nil {
		h.cookie, err = peercred.OwnNetNS()
	}
	if err != nil {
		_ = unix.Close(h.own)
		return nil, err
	}
	return h, nil
}

// Close lets go of every namespace that is kept. Nothing may be called after it.
func (h *Host) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range h.kept {
		_ = unix.Close(k.fd)
	}
	clear(h.kept)
	_ = unix.Close(h.own)
}

// Keep finds the namespace that c means by a text, as registry.Namespaces has it.
func (h *Host) Keep(c registry.Caller, text string) (registry.Namespace, uint32, error) {
	fd, err := h.open(c, text)
	if err != nil {
		return registry.Namespace{}, 0, err
	}
	return h.keep(fd, 0, "")
}

// Name is how endpoints spell the namespace that c means by a text. It looks for no number: one that is nobody's stays as it is.
func (h *Host) Name(c registry.Caller, text string) (string, error) {
	inode, err := h.meant(c, text)
	if err != nil {
		return "", err
	}
	if inode == h.inode {
		return registry.HostNetns, nil
	}
	found := h.named(inode)
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.nameLocked(inode, found), nil
}

// Restore keeps a namespace that was known before under its name, if it is still there. After another boot only its name means
// anything, and whatever has it now is it.
func (h *Host) Restore(n registry.Namespace) (registry.Namespace, uint32, error) {
	gone := &notThere{n.Name}
	sameBoot := n.BootID == h.bootID
	fd, err := h.openNamed(n.Name)
	if err == nil && sameBoot {
		if inode, ierr := inodeOf(fd); ierr != nil || inode != n.Inode {
			_ = unix.Close(fd)
			err = gone
		}
	}
	if err != nil && sameBoot {
		fd, err = h.openInode(n.Inode)
	}
	if err != nil {
		return n, 0, err
	}
	now, owner, err := h.keep(fd, 0, n.Name)
	switch {
	case err != nil:
		return n, 0, err
	case now.Name == registry.HostNetns:
		return n, 0, gone
	case now.Name != n.Name, sameBoot && now.Cookie != n.Cookie:
		h.Drop(now.Name)
		return n, 0, gone
	}
	return now, owner, nil
}

// Hold keeps once more what is kept.
func (h *Host) Hold(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kept[name].uses++
}

// Drop ends a Keep, a Restore or a Hold. With the last one a namespace that everybody else has left is gone.
func (h *Host) Drop(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := h.kept[name]
	if k.uses--; k.uses == 0 {
		_ = unix.Close(k.fd)
		delete(h.kept, name)
		delete(h.unseen, name)
	}
}

// keep takes fd. The cookie is asked for where it is zero, for which the namespace must be entered. as is the name that it is to
// have, if it has none yet and nobody else has that one; empty: the one that leads to it.
func (h *Host) keep(fd int, cookie uint64, as string) (registry.Namespace, uint32, error) {
	inode, err := inodeOf(fd)
	if err != nil || inode == h.inode {
		_ = unix.Close(fd)
		return registry.Namespace{Name: registry.HostNetns}, 0, err
	}
	if k := h.again(inode); k != nil {
		_ = unix.Close(fd)
		return k.Namespace, k.owner, nil
	}
	k := &kept{Namespace: registry.Namespace{Inode: inode, Cookie: cookie, BootID: h.bootID}, fd: fd, uses: 1}
	if k.owner, err = ownerOf(fd); err == nil && cookie == 0 {
		err = h.run(fd, func() error {
			own, err := peercred.OwnNetNS()
			k.Cookie = uint64(own)
			return err
		})
	}
	found := h.named(inode)
	h.mu.Lock()
	defer h.mu.Unlock()
	if as == "" || h.kept[as] != nil {
		as = h.nameLocked(inode, found)
	}
	k.Name = as
	if err != nil {
		_ = unix.Close(fd)
		return registry.Namespace{}, 0, h.refused(k.Name, err)
	}
	if first := h.byInodeLocked(inode); first != nil { // somebody was faster
		first.uses++
		_ = unix.Close(fd)
		return first.Namespace, first.owner, nil
	}
	h.kept[k.Name] = k
	return k.Namespace, k.owner, nil
}

// again keeps once more the namespace of an inode, or is nil where it is not kept.
func (h *Host) again(inode uint64) *kept {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := h.byInodeLocked(inode)
	if k != nil {
		k.uses++
	}
	return k
}

func (h *Host) byInodeLocked(inode uint64) *kept {
	for _, k := range h.kept {
		if k.Inode == inode {
			return k
		}
	}
	return nil
}

// nameLocked is the name of a namespace: the one that it has already, else the first of those that lead to it which no other one
// has had until now, else its number.
func (h *Host) nameLocked(inode uint64, found []string) string {
	if k := h.byInodeLocked(inode); k != nil {
		return k.Name
	}
	for _, name := range found {
		if h.kept[name] == nil {
			return name
		}
	}
	return fmt.Sprint(inode)
}

// nameable says whether a name can stand in an endpoint and be told from a number and from portd's own namespace.
func nameable(name string) bool {
	_, err := registry.ParseEndpoint("tcp/1@" + name)
	return err == nil && name != registry.HostNetns && name != registry.UnknownNetns && strings.Trim(name, "0123456789") != ""
}

// named are the names under Dir that lead to a namespace, in order.
func (h *Host) named(inode uint64) (names []string) {
	entries, _ := os.ReadDir(h.dir) // it is not there before ip-netns(8) has made it
	for _, e := range entries {
		var st unix.Stat_t
		if nameable(e.Name()) && unix.Stat(h.dir+"/"+e.Name(), &st) == nil && st.Ino == inode {
			names = append(names, e.Name())
		}
	}
	return names
}

// A notThere error is a registry.ErrNotFound.
type notThere struct{ what string }

func (e *notThere) Error() string        { return fmt.Sprintf("there is no network namespace %s", e.what) }
func (e *notThere) Is(target error) bool { return target == registry.ErrNotFound }
