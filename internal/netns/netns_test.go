package netns_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/netns"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
)

// A namespace is found by the pid of who lives there and by its number, and has one name either way.
func TestKeepByProcessAndNumber(t *testing.T) {
	needsAdmin(t)
	h, d := open(t, "boot"), dwell(t, 0, "-")
	byPID, owner, err := h.Keep(me(), strconv.Itoa(d.pid))
	if err != nil {
		t.Fatal(err)
	}
	if byPID.Name != d.inode || fmt.Sprint(byPID.Inode) != d.inode || byPID.Cookie == 0 || byPID.BootID != "boot" || owner != 0 {
		t.Errorf("by pid: %+v of uid %d, want the name %s", byPID, owner, d.inode)
	}
	byNumber, _, err := h.Keep(me(), d.inode)
	if err != nil || byNumber != byPID {
		t.Errorf("by number: %+v, %v; want %+v", byNumber, err, byPID)
	}
	for _, text := range []string{strconv.Itoa(d.pid), d.inode} {
		if name, err := h.Name(me(), text); name != d.inode || err != nil {
			t.Errorf("the name of %s is %q, %v", text, name, err)
		}
	}
	own, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{strconv.Itoa(os.Getpid()), own[len("net:[") : len(own)-1]} {
		if n, _, err := h.Keep(me(), text); n.Name != registry.HostNetns || err != nil {
			t.Errorf("portd's own as %s is %q, %v", text, n.Name, err)
		}
	}
	h.Drop(d.inode)
	if err := h.Enter(d.inode, func() error { return nil }); err != nil {
		t.Errorf("kept twice and dropped once, it cannot be entered: %v", err)
	}
	h.Drop(d.inode)
	if err := h.Enter(d.inode, func() error { return nil }); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("dropped as often as kept, to enter it is %v", err)
	}
}

func TestKeepWhatIsNot(t *testing.T) {
	h := open(t, "boot")
	elsewhere := me()
	elsewhere.PID = 0
	for _, tt := range []struct {
		c    registry.Caller
		text string
		want error
		says string
	}{
		{me(), "nosuch", registry.ErrNotFound, "there is no network namespace nosuch"},
		{me(), "../../proc/self/ns/net", registry.ErrNotFound, ""},
		{me(), "4194304", registry.ErrNotFound, "no process with the pid 4194304 is running"},
		{me(), "4294967295", registry.ErrNotFound, "there is no network namespace 4294967295"},
		{me(), "", registry.ErrNotFound, ""},
		{elsewhere, "1", registry.ErrUnsupported, "another pid namespace"},
	} {
		_, _, err := h.Keep(tt.c, tt.text)
		if !errors.Is(err, tt.want) {
			t.Errorf("%q: %v, want %v", tt.text, err, tt.want)
		}
	}
}

// What f does in a namespace is done there, by many at once, and the threads are back where they were afterwards.
func TestEnter(t *testing.T) {
	needsAdmin(t)
	h, d := open(t, "boot"), dwell(t, 0, "-")
	there, _, err := h.Keep(me(), d.inode)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			for range 20 {
				var link string
				var cookie uint64
				err := h.Enter(there.Name, func() (err error) {
					if link, err = os.Readlink("/proc/thread-self/ns/net"); err != nil {
						return err
					}
					fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
					if err != nil {
						return err
					}
					defer unix.Close(fd)
					cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
					return err
				})
				if err != nil || link != "net:["+d.inode+"]" || cookie != there.Cookie {
					t.Errorf("inside: %s, a socket of %d, %v; want %s, %d", link, cookie, err, d.inode, there.Cookie)
				}
			}
		})
	}
	all.Wait()
	boom := errors.New("boom")
	if err := h.Enter(there.Name, func() error { return boom }); err != boom {
		t.Errorf("an error inside comes back as %v", err)
	}
	func() {
		defer func() {
			if got := recover(); got != boom {
				t.Errorf("a panic inside comes back as %v", got)
			}
		}()
		_ = h.Enter(there.Name, func() error { panic(boom) })
	}()
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		link, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net")
		if err == nil && link != own {
			t.Errorf("thread %s is left in %s", task.Name(), link)
		}
	}
}

// Whoever may not enter is told which capability that takes.
func TestEnterWithoutCapability(t *testing.T) {
	if netns.MayEnter() {
		again := exec.Command("/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$")
		again.SysProcAttr = nstest.As(t, 65534, 65534)
		if said, err := again.CombinedOutput(); err != nil || bytes.Contains(said, []byte("FAIL")) {
			t.Errorf("as another user: %v\n%s", err, said)
		}
		return
	}
	nstest.Need(t)
	h, d := open(t, "boot"), dwell(t, unix.CLONE_NEWUSER, "-")
	_, _, err := h.Keep(me(), d.inode)
	var refused *registry.UnsupportedError
	if !errors.As(err, &refused) || refused.Code != "MISSING_CAPABILITY" {
		t.Errorf("without CAP_SYS_ADMIN: %v", err)
	}
}

// The owner of a user namespace is known through the network namespaces that belong to it.
func TestOwner(t *testing.T) {
	needsAdmin(t)
	attr := nstest.As(t, 65534, 65534)
	h := open(t, "boot")
	d := dwellAs(t, attr)
	_, owner, err := h.Keep(me(), d.inode)
	if err != nil || owner != 65534 {
		t.Errorf("owner is %d, %v; want 65534", owner, err)
	}
}

// A caller's namespace is known by his connection, whoever he is, and for as long as somebody has it joined.
func TestJoin(t *testing.T) {
	needsAdmin(t)
	h := open(t, "boot")
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d := dwell(t, 0, path)
	conn, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	name, leave, err := h.Join(conn)
	if err != nil || name != d.inode {
		t.Fatalf("joined %q, %v; want %s", name, err, d.inode)
	}
	again, leaveAgain, err := h.Join(conn)
	if err != nil || again != name {
		t.Errorf("joined again %q, %v", again, err)
	}
	leave()
	if err := h.Enter(name, func() error { return nil }); err != nil {
		t.Error(err)
	}
	leaveAgain()
	if err := h.Enter(name, func() error { return nil }); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("after both have left: %v", err)
	}

	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range pair {
		f := os.NewFile(uintptr(fd), "")
		defer f.Close()
		if name, _, err := h.Join(f); name != registry.HostNetns || err != nil {
			t.Errorf("a peer at home is in %q, %v", name, err)
		}
	}
}

// A namespace is found again by its number and cookie, and one that only has the same number is another.
func TestRestore(t *testing.T) {
	needsAdmin(t)
	h, d := open(t, "boot"), dwell(t, 0, "-")
	was, _, err := h.Keep(me(), d.inode)
	if err != nil {
		t.Fatal(err)
	}
	later := open(t, "boot")
	if now, _, err := later.Restore(was); err != nil || now != was {
		t.Errorf("in the same boot: %+v, %v; want %+v", now, err, was)
	}
	other := was
	other.Cookie++
	if _, _, err := open(t, "boot").Restore(other); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("with another cookie: %v", err)
	}
	if _, _, err := open(t, "next boot").Restore(was); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("one without a name after another boot: %v", err)
	}
	d.leave()
	h.Drop(was.Name)
	later.Drop(was.Name)
	if _, _, err := open(t, "boot").Restore(was); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("one that is gone: %v", err)
	}
}

// Nobody is left in a namespace when its last process has ended, be it that this one keeps it.
func TestGone(t *testing.T) {
	needsAdmin(t)
	h, stays, goes := open(t, "boot"), dwell(t, 0, "-"), dwell(t, 0, "-")
	for _, d := range []dweller{stays, goes} {
		if _, _, err := h.Keep(me(), d.inode); err != nil {
			t.Fatal(err)
		}
	}
	both := []string{stays.inode, goes.inode}
	for range 5 {
		if gone := h.Gone(both); len(gone) > 0 {
			t.Fatalf("%v are gone while processes live there", gone)
		}
	}
	goes.leave()
	if gone := h.Gone(both); len(gone) > 0 {
		t.Errorf("%v are gone at the first look", gone)
	}
	for range 3 { // and remain so
		if gone := h.Gone(both); len(gone) != 1 || gone[0] != goes.inode {
			t.Errorf("%v are gone, want %s", gone, goes.inode)
		}
	}
}

// A thread that lives elsewhere than its process keeps a namespace, too.
func TestGoneByThreads(t *testing.T) {
	needsAdmin(t)
	h, d := open(t, "boot"), dwell(t, 0, "-")
	if _, _, err := h.Keep(me(), d.inode); err != nil {
		t.Fatal(err)
	}
	thread := dwellByThread(t, d.pid)
	d.leave()
	for range 4 {
		if gone := h.Gone([]string{d.inode}); len(gone) > 0 {
			t.Fatal("it is gone while a thread lives there")
		}
	}
	thread.leave()
	h.Gone([]string{d.inode})
	if gone := h.Gone([]string{d.inode}); len(gone) != 1 {
		t.Error("it is not gone after the thread has ended")
	}
}

// named gives a dweller's namespace a name as ip-netns(8) does.
func named(t *testing.T, d dweller, name string) (remove func()) {
	t.Helper()
	path := filepath.Join(netns.Dir, name)
	if err := os.MkdirAll(netns.Dir, 0o755); err != nil {
		t.Skipf("needs to make names: %v", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		t.Skipf("needs to make names: %v", err)
	}
	f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/%d/ns/net", d.pid), path, "", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		t.Skipf("needs to make names: %v", err)
	}
	done := false
	remove = func() {
		if !done {
			done = true
			_ = unix.Unmount(path, unix.MNT_DETACH)
			_ = os.Remove(path)
		}
	}
	t.Cleanup(remove)
	return remove
}

// A name keeps a namespace that nobody lives in. When the name goes to another one, that gets it only once the first has
// no use for it any more.
func TestNames(t *testing.T) {
	needsAdmin(t)
	h, first := open(t, "boot"), dwell(t, 0, "-")
	name := fmt.Sprintf("portd-test-%d", os.Getpid())
	remove := named(t, first, name)
	was, _, err := h.Keep(me(), strconv.Itoa(first.pid))
	if err != nil || was.Name != name {
		t.Fatalf("kept as %q, %v; want %s", was.Name, err, name)
	}
	first.leave()
	for range 4 {
		if gone := h.Gone([]string{name}); len(gone) > 0 {
			t.Fatal("it is gone while it has a name")
		}
	}
	remove()
	h.Gone([]string{name})
	if gone := h.Gone([]string{name}); len(gone) != 1 {
		t.Error("it is not gone without name and process")
	}

	second := dwell(t, 0, "-")
	remove = named(t, second, name)
	now, _, err := h.Keep(me(), name)
	if err != nil || now.Name != second.inode {
		t.Errorf("the new %s is kept as %q, %v; want its number %s, for the old one still has the name", name, now.Name, err, second.inode)
	}
	h.Drop(now.Name)
	h.Drop(name)
	if now, _, err = h.Keep(me(), second.inode); err != nil || now.Name != name {
		t.Errorf("when the old one is dropped, the new one is kept as %q, %v; want %s", now.Name, err, name)
	}
	if again, _, err := open(t, "next boot").Restore(was); err != nil || again.Inode != now.Inode || again.BootID != "next boot" {
		t.Errorf("after another boot %s is restored as %+v, %v", name, again, err)
	}
	if _, _, err := open(t, "boot").Restore(was); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("in the same boot another namespace has the name: %v", err)
	}
	remove()
	if _, err := h.Name(me(), name); err != nil {
		t.Errorf("what is kept has no name any more: %v", err)
	}
}

// A file under Dir that is no network namespace is none: ip-netns(8) makes an empty one before it mounts.
func TestNotANamespace(t *testing.T) {
	if err := os.MkdirAll(netns.Dir, 0o755); err != nil {
		t.Skip(err)
	}
	name := fmt.Sprintf("portd-empty-%d", os.Getpid())
	path := filepath.Join(netns.Dir, name)
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Skip(err)
	}
	defer os.Remove(path)
	if _, _, err := open(t, "boot").Keep(me(), name); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("an empty file: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o444); err != nil {
		t.Fatal(err)
	}
	if _, _, err := open(t, "boot").Keep(me(), name); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("a pipe: %v", err)
	}
}
