package binder_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// pathDir is a directory with a short name, for sun_path.
func pathDir(t *testing.T, mode fs.FileMode) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "portd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, mode); err != nil {
		t.Fatal(err)
	}
	return dir
}

func unixAt(path string) registry.Endpoint {
	return registry.Endpoint{Netns: registry.HostNetns, Proto: registry.Unix, Path: path}
}

// me is a caller who sees the same files as the binder.
func me() registry.As {
	c := registry.Caller{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), PID: int32(os.Getpid())}
	return registry.As{UID: c.UID, Caller: &c}
}

func bindPath(t *testing.T, b *binder.Binder, path string, as registry.As, mode uint16) error {
	t.Helper()
	return b.Bind(t.Context(), registry.Bind{
		Key: registry.SocketKey{Reservation: path}, Endpoint: unixAt(path), Options: registry.BindOptions{FileMode: mode}, As: as,
	})
}

func dialError(path string) error {
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return err
}

// A path is held, refuses clients until it listens, refuses them again when it does so no more, and is gone once it is released.
func TestPathLife(t *testing.T) {
	b := open(t, binder.Config{})
	path := filepath.Join(pathDir(t, 0o755), "s")
	key := registry.SocketKey{Reservation: path}
	if err := bindPath(t, b, path, me(), 0o640); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != fs.ModeSocket|0o640 {
		t.Errorf("the file: %v, %v", st.Mode(), err)
	}
	if ln, err := net.Listen("unix", path); !errors.Is(err, unix.EADDRINUSE) {
		ln.Close()
		t.Errorf("a stranger's bind: %v", err)
	}
	for range 2 {
		if err := dialError(path); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("connect to a held path: %v", err)
		}
		if err := b.Listen(t.Context(), key, registry.ListenOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := dialError(path); err != nil {
			t.Errorf("connect to a listening path: %v", err)
		}
		want, err := b.Options(key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Refuse(key); err != nil {
			t.Fatal(err)
		}
		if got, err := b.Options(key); err != nil || got != want {
			t.Errorf("while clients are refused it listens with %+v, %v; before with %+v", got, err, want)
		}
		if err := b.Unlisten(key); err != nil {
			t.Fatal(err)
		}
	}
	if holders, err := b.Holders(t.Context(), unixAt(path)); err != nil || len(holders) > 0 {
		t.Errorf("in the way of ourselves: %v, %v", holders, err)
	}
	if err := b.Release(key); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file after the release: %v", err)
	}
}

// What is somebody else's stays where it is, and the refusal says what it is.
func TestPathTaken(t *testing.T) {
	b := open(t, binder.Config{})
	dir := pathDir(t, 0o755)
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(at("plain"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", at("listening"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	bound, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(bound)
	if err := unix.Bind(bound, &unix.SockaddrUnix{Name: at("bound")}); err != nil {
		t.Fatal(err)
	}
	for name, why := range map[string]string{"plain": "no socket", "listening": "", "bound": ""} {
		err := bindPath(t, b, at(name), me(), 0)
		taken := (*registry.TakenError)(nil)
		if !errors.As(err, &taken) || !strings.Contains(taken.Why, why) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(at(name)); err != nil {
			t.Errorf("%s is gone: %v", name, err)
		}
	}
	for name, want := range map[string]registry.SocketState{"listening": registry.SocketListening, "bound": registry.SocketBound} {
		holders, err := b.Holders(t.Context(), unixAt(at(name)))
		if err != nil || len(holders) != 1 || holders[0].State != want {
			t.Errorf("holders of %s: %v, %v", name, holders, err)
		}
	}
	for _, path := range []string{at("no/such"), at("plain/below")} {
		if err := bindPath(t, b, path, me(), 0); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// A file that its user's dead program left is replaced.
func TestPathLeftover(t *testing.T) {
	b := open(t, binder.Config{})
	path := filepath.Join(pathDir(t, 0o755), "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	if err := bindPath(t, b, path, me(), 0); err != nil {
		t.Fatal(err)
	}
	// What somebody put in the place of ours is not ours to remove.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Release(registry.SocketKey{Reservation: path}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another's file is gone with the release: %v", err)
	}
}

// root's portd makes the file as its caller would: with his rights, and as his.
func TestPathOfAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("to act for another user takes root")
	}
	const nobody = 65534
	b := open(t, binder.Config{})
	c := registry.Caller{UID: nobody, GID: nobody, PID: int32(os.Getpid())}
	as := registry.As{UID: nobody, Caller: &c}
	closed, open := pathDir(t, 0o755), pathDir(t, 0o777)
	if err := bindPath(t, b, filepath.Join(closed, "s"), as, 0); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("in root's directory: %v", err)
	}
	path := filepath.Join(open, "s")
	if err := bindPath(t, b, path, as, 0); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if sys := st.Sys().(*syscall.Stat_t); sys.Uid != nobody || sys.Gid != nobody || st.Mode().Perm() != 0o600 {
		t.Errorf("the file is %d:%d's, %v", sys.Uid, sys.Gid, st.Mode())
	}
	// Another user's leftover is not his to remove, though the directory would let him.
	root := filepath.Join(open, "root")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: root})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	if err := bindPath(t, b, root, as, 0); !errors.Is(err, registry.ErrTaken) || !strings.Contains(err.Error(), "left there by user root") {
		t.Errorf("over root's leftover: %v", err)
	}
}

// A caller to whom the path may mean another file is refused.
func TestPathFromElsewhere(t *testing.T) {
	b := open(t, binder.Config{})
	path := filepath.Join(pathDir(t, 0o755), "s")
	c := registry.Caller{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())} // of another pid namespace: no pid
	err := bindPath(t, b, path, registry.As{UID: c.UID, Caller: &c}, 0)
	if !errors.Is(err, registry.ErrUnsupported) {
		t.Error(err)
	}
}

// Who connects learns whose socket it is: not root's, though root's portd has it.
func TestPathIsItsOwners(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("to act for another user takes root")
	}
	const nobody, group = 65534, 12345
	b := open(t, binder.Config{})
	path := filepath.Join(pathDir(t, 0o777), "s")
	own := uint32(group)
	if err := bindPath(t, b, path, registry.As{UID: nobody, Group: &own}, 0o660); err != nil { // as after a restart
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if sys := st.Sys().(*syscall.Stat_t); sys.Uid != nobody || sys.Gid != group || st.Mode().Perm() != 0o660 {
		t.Errorf("the file is %d:%d's, %v", sys.Uid, sys.Gid, st.Mode())
	}
	for _, opt := range []registry.ListenOptions{{}, {Backlog: 7}} {
		if err := b.Listen(t.Context(), registry.SocketKey{Reservation: path}, opt); err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := c.(*net.UnixConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) {
			who, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
			if err != nil || who.Uid != nobody || who.Gid != group {
				t.Errorf("its clients take it for that of %+v, %v", who, err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

// A directory may be another user's, who puts a symlink in the place of a new file: what that leads to keeps its mode.
func TestPathSwapped(t *testing.T) {
	b := open(t, binder.Config{})
	dir := pathDir(t, 0o755)
	path, victim, swap := filepath.Join(dir, "s"), filepath.Join(dir, "victim"), filepath.Join(dir, "swap")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			default:
			}
			_ = os.Symlink(victim, swap)
			if _, err := os.Lstat(path); err == nil {
				_ = os.Rename(swap, path)
			}
		}
	}()
	defer func() { close(end); <-ended }()
	for i := range 1000 {
		_ = bindPath(t, b, path, me(), 0o666)
		if err := b.Release(registry.SocketKey{Reservation: path}); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(path)
		if st, err := os.Stat(victim); err != nil || st.Mode() != 0o600 {
			t.Fatalf("after %d times the file in its own directory is %v, %v", i, st.Mode(), err)
		}
	}
}

// A path that could not be held again after it listened can listen again all the same, once its directory lets it.
func TestPathBroken(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("to act for another user takes root")
	}
	const nobody = 65534
	b := open(t, binder.Config{})
	dir := pathDir(t, 0o777)
	path := filepath.Join(dir, "s")
	key := registry.SocketKey{Reservation: path}
	group := uint32(nobody)
	if err := bindPath(t, b, path, registry.As{UID: nobody, Group: &group}, 0o666); err != nil {
		t.Fatal(err)
	}
	listening := func(opt registry.ListenOptions) {
		t.Helper()
		if err := b.Listen(t.Context(), key, opt); err != nil {
			t.Fatal(err)
		}
		if err := dialError(path); err != nil {
			t.Errorf("connect to a listening path: %v", err)
		}
	}
	mode := func(m fs.FileMode) {
		t.Helper()
		if err := os.Chmod(dir, m); err != nil {
			t.Fatal(err)
		}
	}
	listening(registry.ListenOptions{})
	mode(0o755)
	if err := b.Unlisten(key); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("stop listening in a directory that lets nobody write: %v", err)
	}
	mode(0o777)
	listening(registry.ListenOptions{})

	mode(0o755)
	if _, err := b.Refuse(key); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("refuse in a directory that lets nobody write: %v", err)
	}
	mode(0o777)
	if err := b.Admit(key); err != nil {
		t.Fatal(err)
	}
	if err := dialError(path); err != nil {
		t.Errorf("connect to who admits again: %v", err)
	}
}

// What a program did to a path's socket that it had, and to its file, is undone when it is gone.
func TestReturnOfAPath(t *testing.T) {
	seen := new(told)
	b := open(t, binder.Config{Observer: seen})
	path := filepath.Join(pathDir(t, 0o755), "s")
	key := registry.SocketKey{Reservation: path}
	if err := bindPath(t, b, path, me(), 0); err != nil {
		t.Fatal(err)
	}
	borrow := func(do func(fd int) error) {
		t.Helper()
		lent, err := b.Lend(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := do(lent[0].FD); err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(lent[0].FD)
		b.Return(key, lent...)
	}
	remove := func(int) error { return os.Remove(path) }
	shutdown := func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) }

	borrow(remove)
	b.Mended()
	if err := dialError(path); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect to a held path whose file a program has removed: %v", err)
	}
	borrow(func(fd int) error { return unix.Listen(fd, 5) })
	b.Mended()
	if err := dialError(path); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect to a held path on which a program has listened: %v", err)
	}
	if err := b.Listen(t.Context(), key, registry.ListenOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func(int) error{"removed": remove, "shut down": shutdown, "used": func(int) error { return nil }} {
		before := seen.listening.Load()
		borrow(do)
		b.Mended()
		if err := dialError(path); err != nil {
			t.Errorf("connect to what a program has %s: %v", name, err)
		}
		if told := seen.listening.Load() > before; told != (name != "used") {
			t.Errorf("%s: the observer is told of another socket: %t", name, told)
		}
	}
	if seen.closing.Load() != 2 {
		t.Errorf("the observer is told %d times that the old one is gone, want 2", seen.closing.Load())
	}
}

// told counts what an observer is told.
type told struct{ listening, closing atomic.Int32 }

func (o *told) Listening(registry.SocketKey, []registry.Socket, registry.ListenOptions) {
	o.listening.Add(1)
}
func (o *told) Closing(registry.SocketKey) { o.closing.Add(1) }
