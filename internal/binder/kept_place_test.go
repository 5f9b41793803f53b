package binder_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// A path is had by the socket that has its file; clients who wait are served, and the file is the same one.
func TestKeptPath(t *testing.T) {
	o := &observer{}
	w := keep(t, binder.Config{Observer: o})
	path := filepath.Join(pathDir(t, 0o755), "s")
	k := registry.SocketKey{Reservation: path}
	bind := func() {
		t.Helper()
		if err := bindPath(t, w.b, path, me(), 0o660); err != nil {
			t.Fatal(err)
		}
	}
	listen := func() {
		t.Helper()
		if err := w.b.Listen(t.Context(), k, registry.ListenOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	inode := func() uint64 {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	again := func(want bool) {
		t.Helper()
		file, socks := inode(), w.sockets()
		w.die()
		w.begin()
		bind()
		if same := inode() == file && fmt.Sprint(w.sockets()) == fmt.Sprint(socks); same != want {
			t.Errorf("the file and its socket are the same: %t, want %t", same, want)
		}
	}
	bind()
	again(true)
	w.unclaimed(0)
	if err := dialError(path); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect to what is held: %v", err)
	}
	listen()
	var waiting []net.Conn
	for range 3 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, c)
	}
	again(true)
	listen()
	w.unclaimed(0)
	for _, c := range waiting {
		if fd, _, err := unix.Accept(o.last[0].FD); err != nil {
			t.Errorf("accept of what waited: %v", err)
		} else {
			_ = unix.Close(fd)
		}
		c.Close()
	}
	// Refused: it holds the path with another socket, which is the successor's.
	if _, err := w.b.Refuse(k); err != nil {
		t.Fatal(err)
	}
	again(true)
	listen()
	w.unclaimed(0)
	if err := dialError(path); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect where clients are refused: %v", err)
	}
	if err := w.b.Admit(k); err != nil {
		t.Fatal(err)
	}
	if err := dialError(path); err != nil {
		t.Error(err)
	}
	// A file that somebody has taken away is made anew.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	w.die()
	w.begin()
	bind()
	listen()
	if err := w.b.Admit(k); err != nil {
		t.Fatal(err)
	}
	w.unclaimed(0)
	if err := dialError(path); err != nil {
		t.Error(err)
	}
	// What nobody wants goes with its file.
	w.die()
	w.begin()
	w.unclaimed(1)
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of a path that is nobody's: %v", err)
	}
	bind()
	if err := w.b.Release(k); err != nil {
		t.Fatal(err)
	}
	if left := w.names(); len(left) > 0 {
		t.Errorf("the keeper has %v", left)
	}
}

// A port in one network namespace is none in another, also where both have the same number.
func TestKeptNetns(t *testing.T) {
	spaces := map[string]int{}
	enter := func(name string, f func() error) error {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // and never back: the thread ends with the goroutine
			if err := unix.Setns(spaces[name], unix.CLONE_NEWNET); err != nil {
				done <- err
				return
			}
			done <- f()
		}()
		return <-done
	}
	w := keep(t, binder.Config{Enter: enter})
	for _, name := range []string{"blue", "green"} {
		made := make(chan error)
		go func() {
			runtime.LockOSThread()
			err := unix.Unshare(unix.CLONE_NEWNET)
			if err == nil {
				spaces[name], err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			}
			made <- err
		}()
		if err := <-made; err != nil {
			t.Skipf("needs CAP_SYS_ADMIN to make a network namespace: %v", err)
		}
		t.Cleanup(func() { _ = unix.Close(spaces[name]) })
	}
	p := port()
	in := func(name, text string) registry.Endpoint {
		ep := at(t, text, p)
		ep.Netns = name
		return ep
	}
	had := []registry.Endpoint{in("host", "tcp/1"), in("blue", "tcp/1"), in("blue", "udp/1")}
	for _, ep := range had {
		hold(t, w.b, ep)
	}
	socks := w.sockets()
	w.die()
	w.begin()
	hold(t, w.b, in("green", "tcp/1")) // nobody had it
	for _, ep := range had[:2] {
		hold(t, w.b, ep)
	}
	listen(t, w.b, had[1])
	closed := w.b.Unclaimed()
	if len(closed) != 1 || closed[0].Proto != registry.UDP || closed[0].Netns != registry.UnknownNetns {
		t.Errorf("unclaimed: %v", closed)
	}
	now := w.sockets()
	kept := slices.DeleteFunc(slices.Clone(socks), func(s uint64) bool { return !slices.Contains(now, s) })
	if len(now) != 3 || len(kept) != 2 {
		t.Errorf("the keeper has %v, had %v", now, socks)
	}
	for _, name := range []string{"host", "blue", "green"} {
		release(t, w.b, in(name, "tcp/1"))
	}
	if left := w.names(); len(left) > 0 {
		t.Errorf("the keeper has %v", left)
	}
}

// What is no socket of a Binder's is closed, and is in nobody's way.
func TestKeptRubbish(t *testing.T) {
	w := keep(t, binder.Config{})
	ep := at(t, "tcp/1", port())
	file, err := unix.MemfdCreate("rubbish", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	unbound, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	bound, err := (stranger{Type: unix.SOCK_STREAM, At: sockAt(ep)}).try()
	if err != nil {
		t.Fatal(err)
	}
	for name, fd := range map[string]int{
		"s.1": file, "a.2": file, "b.3": file, "g.1.1.4": file, "l.5": unbound, "g.1.0.6": unbound, "z.7": bound, "s": unbound, "b.8": bound,
	} {
		w.store.Put(name, fd)
	}
	w.die()
	for _, fd := range []int{file, unbound, bound} {
		_ = unix.Close(fd)
	}
	w.begin()
	hold(t, w.b, ep)
	w.unclaimed(0)
	if names := w.names(); len(names) != 1 {
		t.Errorf("the keeper has %v", names)
	}
}
