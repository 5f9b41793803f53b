package daemon_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/netns"
	"github.com/portd/portd/internal/portdtest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A space is a network namespace with somebody in it.
type space struct {
	pid    int
	number string
	leave  func() // ends whoever is in it
}

// unshare makes a network namespace with loopback up.
func unshare(t *testing.T) *space {
	t.Helper()
	if !netns.MayEnter() {
		t.Skip("needs CAP_SYS_ADMIN to make and enter network namespaces")
	}
	cmd := exec.Command("/bin/cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("needs a network namespace: %v", err)
	}
	s := &space{pid: cmd.Process.Pid}
	left := false
	s.leave = func() {
		if !left {
			left = true
			_ = in.Close()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(s.leave)
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", s.pid))
	if err != nil {
		t.Fatal(err)
	}
	s.number = strings.TrimSuffix(strings.TrimPrefix(link, "net:["), "]")
	s.do(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		lo, err := unix.NewIfreq("lo")
		if err != nil {
			return err
		}
		lo.SetUint16(unix.IFF_UP)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
	})
	return s
}

// do runs f on a thread in the namespace. What f starts on other threads is elsewhere.
func (s *space) do(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never back: it ends with the goroutine
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", s.pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// binds says whether a stranger gets a TCP port of loopback there.
func (s *space) binds(t *testing.T, port int) (free bool) {
	t.Helper()
	s.do(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
		if free = err == nil; !free && !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
		return nil
	})
	return free
}

// name gives it a name as ip-netns(8) does.
func (s *space) name(t *testing.T, name string) (remove func()) {
	t.Helper()
	path := filepath.Join(netns.Dir, name)
	err := os.MkdirAll(netns.Dir, 0o755)
	if err == nil {
		err = os.WriteFile(path, nil, 0o444)
	}
	if err == nil {
		err = unix.Mount(fmt.Sprintf("/proc/%d/ns/net", s.pid), path, "", unix.MS_BIND, "")
	}
	if err != nil {
		_ = os.Remove(path)
		t.Skipf("needs to give names to network namespaces: %v", err)
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

// reserveIn reserves a port in a network namespace.
func reserveIn(t *testing.T, c *client.Client, ns, endpoint string, mode pb.Mode) *pb.Reservation {
	t.Helper()
	spec, err := client.ParseSpec(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	spec.Netns = ns
	answer, err := c.Reservations.Reserve(t.Context(), &pb.ReserveRequest{
		Spec: &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{spec}, Mode: mode},
	})
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetReservation()
}

// until waits for a change of a reservation and returns its event.
func until(t *testing.T, c *client.Client, from int64, typ pb.EventType, id string) *pb.Event {
	t.Helper()
	w, err := c.Reservations.WatchReservations(t.Context(), &pb.WatchReservationsRequest{StartRevision: from})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := w.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range m.GetEvents() {
			if ev.GetType() == typ && ev.GetReservation().GetId() == id {
				return ev
			}
		}
	}
}

// The same port is held once in each namespace, by the kernel, across a restart, and until everybody has left there.
func TestNetnsAcrossRestart(t *testing.T) {
	d, c := start(t)
	there := unshare(t)
	res := reserveIn(t, c, strconv.Itoa(there.pid), "tcp/8080", pb.Mode_MODE_HELD)
	recorded := reserveIn(t, c, there.number, "tcp/8081", pb.Mode_MODE_RECORDED)
	if text, want := res.GetAssigned()[0].GetEndpoint().GetText(), "tcp/8080@"+there.number; text != want {
		t.Errorf("reserved is %s, want %s", text, want)
	}
	if there.binds(t, 8080) {
		t.Error("a stranger gets the port in the namespace where it is held")
	}
	wantFree(t, 8080)
	reserve(t, c, "here", "tcp/8080")

	d.Stop(t)
	if !there.binds(t, 8080) {
		t.Error("the port is still bound after portd has stopped")
	}
	d.Restart(t)
	c = d.Client(t)
	if there.binds(t, 8080) {
		t.Error("a stranger gets the port after a restart")
	}

	there.leave()
	for _, r := range []*pb.Reservation{res, recorded} {
		ev := until(t, c, r.GetRevision()+1, pb.EventType_EVENT_TYPE_EXPIRED, r.GetId())
		if want := "network namespace " + there.number + " is gone"; ev.GetReason() != want {
			t.Errorf("%s has ended for %q, want %q", r.GetId(), ev.GetReason(), want)
		}
	}
	wantHeld(t, 8080)
}

// What was reserved in a namespace that goes while portd is down has ended when it is back.
func TestNetnsGoneMeanwhile(t *testing.T) {
	d, c := start(t)
	there := unshare(t)
	res := reserveIn(t, c, there.number, "tcp/8080", pb.Mode_MODE_HELD)
	d.Stop(t)
	there.leave()
	d.Restart(t)
	c = d.Client(t)
	_, err := c.Reservations.GetReservation(t.Context(), &pb.GetReservationRequest{Reservation: res.GetId()})
	if !errors.Is(err, client.ErrNotFound) {
		t.Errorf("it is there after its network namespace is gone: %v", err)
	}
	ev := until(t, c, res.GetRevision()+1, pb.EventType_EVENT_TYPE_EXPIRED, res.GetId())
	if want := "network namespace " + there.number + " is gone"; ev.GetReason() != want {
		t.Errorf("it has ended for %q, want %q", ev.GetReason(), want)
	}
}

// A name means the namespace that it led to when the port was reserved.
func TestNetnsOfAName(t *testing.T) {
	d, c := start(t)
	there := unshare(t)
	name := fmt.Sprintf("portd-daemon-%d", os.Getpid())
	remove := there.name(t, name)
	res := reserveIn(t, c, name, "tcp/8080", pb.Mode_MODE_HELD)
	if text, want := res.GetAssigned()[0].GetEndpoint().GetText(), "tcp/8080@"+name; text != want {
		t.Errorf("reserved is %s, want %s", text, want)
	}
	found, err := c.Reservations.GetReservation(t.Context(), &pb.GetReservationRequest{Reservation: "tcp/8080@" + there.number})
	if err != nil || found.GetReservation().GetId() != res.GetId() {
		t.Errorf("by the number of its namespace it is %v, %v", found, err)
	}
	there.leave() // the name keeps it
	d.Stop(t)
	d.Restart(t)
	c = d.Client(t)
	if found, err = c.Reservations.GetReservation(t.Context(), &pb.GetReservationRequest{Reservation: "tcp/8080@" + name}); err != nil {
		t.Fatal(err)
	}
	if s := found.GetReservation().GetAssigned()[0].GetState(); s != pb.EndpointState_ENDPOINT_STATE_HELD {
		t.Errorf("after a restart it is %v", s)
	}
	remove()
	until(t, c, res.GetRevision()+1, pb.EventType_EVENT_TYPE_EXPIRED, res.GetId())
}

// A connection to a listener of another namespace gets to a worker here, and a program there serves one of here.
func TestNetnsHandOff(t *testing.T) {
	d, _ := start(t)
	there := unshare(t)
	ln, err := client.ListenConfig{Portd: client.Options{Socket: d.Socket}}.Listen(t.Context(), "tcp/8080@"+there.number)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "from outside\n")
	}()
	var said []byte
	there.do(t, func() (err error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "connection")
		defer f.Close()
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 8080, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		said, err = bufio.NewReader(f).ReadBytes('\n')
		return err
	})
	if !bytes.Equal(said, []byte("from outside\n")) {
		t.Errorf("a client in the namespace reads %q", said)
	}
	if _, err := net.Dial("tcp", "127.0.0.1:8080"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the port of portd's own namespace answers: %v", err)
	}
}

// After a boot a named namespace is one that is still to be made: its ports are lost until it is there.
func TestNetnsAfterABoot(t *testing.T) {
	d, c := start(t)
	there := unshare(t)
	name := fmt.Sprintf("portd-boot-%d", os.Getpid())
	remove := there.name(t, name)
	named := reserveIn(t, c, name, "tcp/8080", pb.Mode_MODE_HELD)
	other := unshare(t)
	anonymous := reserveIn(t, c, other.number, "tcp/8080", pb.Mode_MODE_HELD)
	d.Stop(t)
	remove()
	anotherBoot(t, d)

	d.Restart(t)
	c = d.Client(t)
	if _, err := c.Reservations.GetReservation(t.Context(), &pb.GetReservationRequest{Reservation: anonymous.GetId()}); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("one of a namespace without a name is there after a boot: %v", err)
	}
	found, err := c.Reservations.GetReservation(t.Context(), &pb.GetReservationRequest{Reservation: named.GetId()})
	if err != nil {
		t.Fatal(err)
	}
	if s := found.GetReservation().GetAssigned()[0].GetState(); s != pb.EndpointState_ENDPOINT_STATE_LOST {
		t.Errorf("before its namespace is there again it is %v, want lost", s)
	}
	again := unshare(t)
	again.name(t, name)
	until(t, c, named.GetRevision()+1, pb.EventType_EVENT_TYPE_RECOVERED, named.GetId())
	if again.binds(t, 8080) {
		t.Error("it is held again, and a stranger gets it")
	}
}

// anotherBoot has the store of a daemon that is stopped be from before a boot.
func anotherBoot(t *testing.T, d *portdtest.Daemon) {
	t.Helper()
	store, err := boltstore.Open(filepath.Join(d.State, "portd.db"), boltstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	st, err := store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	change := registry.Change{Revision: st.Revision + 1, Put: []registry.Record{&registry.Boot{ID: "the one before"}}}
	for _, n := range st.Namespaces {
		n.BootID = "the one before"
		change.Put = append(change.Put, n)
	}
	if err := store.Commit(t.Context(), st.Revision, []registry.Change{change}); err != nil {
		t.Fatal(err)
	}
}
