package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// portd is killed before each system call of a reservation of several endpoints, one after the other, and likewise of its
// release: some of them, others each time, or all with PORTD_LONG=1. When it is back either all of it is there and held, or nothing
// is; while it is away it has no port.
func TestKilledAtEveryStep(t *testing.T) {
	nstest.Need(t)
	clean(t)
	for _, act := range []string{"reserve", "release"} {
		t.Run(act, func(t *testing.T) {
			d := portdtest.New(t)
			var there, gone, kills int
			for step, killed := 1, true; killed && !t.Failed(); step = stepAfter(step) {
				p, calls := stepped(t, d)
				c, err := client.Dial(t.Context(), client.Options{Socket: d.Socket})
				if err != nil {
					t.Fatal(err)
				}
				if act == "release" {
					reserve(t, c, "web", several...)
				}
				// Else the client would wait whether portd comes back.
				ctx, cancel := context.WithCancel(t.Context())
				calls.killed = cancel
				calls.killAt(step)
				if act == "reserve" {
					_, err = c.Reservations.Reserve(ctx, &pb.ReserveRequest{Name: "web", Spec: spec(t, several...)})
				} else {
					_, err = c.Reservations.Release(ctx, &pb.ReleaseRequest{Reservation: "web"})
				}
				killed = calls.killAt(0)
				cancel()
				if killed {
					kills++
				} else { // it has come to its end before that step
					if err != nil {
						t.Errorf("%s: %v", act, err)
					}
					_ = p.Process.Kill()
				}
				p.ends(t)
				c.Close()
				wantAll(t, false)

				if whole(t, d, act == "reserve" && err == nil, act == "release" && err == nil) {
					there++
				} else {
					gone++
				}
			}
			t.Logf("killed at %d steps; then it was there %d times, and gone %d times", kills, there, gone)
			if there < 1 || gone < 1 { // the step that decides may be the last one
				t.Error("that proves nothing")
			}
		})
	}
}

// stepAfter is the step of the next kill after one: about every third, by chance, or with PORTD_LONG=1 each.
func stepAfter(step int) int {
	if os.Getenv("PORTD_LONG") != "" {
		return step + 1
	}
	return step + 1 + rand.IntN(5)
}

// several are the endpoints, on these ports of all addresses and of 127.0.0.1.
var several = []string{"tcp,udp/9000-9002", "tcp/127.0.0.1:9010", "tcp6/9010"}

// wantAll fails t unless each port is held, or each is free.
func wantAll(t *testing.T, held bool) {
	t.Helper()
	for _, at := range []string{
		"tcp [::]:9000", "tcp [::]:9001", "tcp [::]:9002", "udp [::]:9000", "udp [::]:9001", "udp [::]:9002", "tcp 127.0.0.1:9010", "tcp [::1]:9010",
	} {
		network, addr := at[:3], at[4:]
		var err error
		if network == "tcp" {
			var ln net.Listener
			if ln, err = net.Listen(network, addr); err == nil {
				ln.Close()
			}
		} else {
			var pc net.PacketConn
			if pc, err = net.ListenPacket(network, addr); err == nil {
				pc.Close()
			}
		}
		if held != errors.Is(err, unix.EADDRINUSE) || !held && err != nil {
			t.Errorf("bind of %s: %v; held is to be %t", at, err, held)
		}
	}
}

// whole starts portd again and says whether the reservation is there. It fails t where only some of it is, or where it is not as it
// was answered. Then it is released.
func whole(t *testing.T, d *portdtest.Daemon, reserved, released bool) bool {
	t.Helper()
	p := portd(t, d, "")
	p.begin(t)
	defer func() {
		_ = p.Process.Kill()
		p.ends(t)
	}()
	c, err := client.Dial(t.Context(), client.Options{Socket: d.Socket})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	list, err := c.Reservations.ListReservations(t.Context(), &pb.ListReservationsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	there := len(list.GetReservations()) == 1
	if reserved && !there || released && there || len(list.GetReservations()) > 1 {
		t.Errorf("reserved %t, released %t, and after a restart there is %v", reserved, released, list.GetReservations())
	}
	wantAll(t, there)
	if !there {
		return false
	}
	res := list.GetReservations()[0]
	if n := len(res.GetAssigned()); n != 4 {
		t.Errorf("%d endpoints are left of 4: %v", n, res)
	}
	for _, a := range res.GetAssigned() {
		if a.GetState() != pb.EndpointState_ENDPOINT_STATE_HELD || len(a.GetExceptions()) > 0 {
			t.Errorf("%s is %v", a.GetEndpoint().GetText(), a)
		}
	}
	if _, err := c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: res.GetId()}); err != nil {
		t.Fatal(err)
	}
	return true
}

// steps are the system calls before which portd can be killed: those that touch ports, the store, and its clients.
var steps = []uint32{
	unix.SYS_SOCKET, unix.SYS_SETSOCKOPT, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_SHUTDOWN, unix.SYS_CLOSE,
	unix.SYS_PWRITE64, unix.SYS_FDATASYNC, unix.SYS_WRITE,
}

// calls are the steps of a portd, of each of which the kernel tells before it makes it (seccomp_unotify(2)).
type calls struct {
	listener int
	process  *os.Process
	killed   func() // called when it has been killed; set before killAt

	mu   sync.Mutex
	left int // until it is killed; 0: it is not
	dead bool
}

// killAt has portd killed at the nth step from now on, or at none, and says whether it has been killed already.
func (c *calls) killAt(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = n
	return c.dead
}

// next says whether a step may be made.
func (c *calls) next() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left > 0 {
		if c.left--; c.left == 0 {
			c.dead = true
			_ = c.process.Kill() // what waits for an answer has not ended
			c.killed()
		}
	}
	return !c.dead
}

// serve lets steps be made until portd has ended.
func (c *calls) serve() {
	defer unix.Close(c.listener)
	for {
		ready := []unix.PollFd{{Fd: int32(c.listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(ready, -1); err != nil && !errors.Is(err, unix.EINTR) || ready[0].Revents&unix.POLLHUP != 0 {
			return
		}
		var ask struct { // struct seccomp_notif
			id         uint64
			pid, flags uint32
			data       [64]byte
		}
		if ready[0].Revents&unix.POLLIN == 0 || c.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&ask)) != 0 {
			continue // the call was interrupted by a signal
		}
		if !c.next() {
			continue
		}
		answer := struct { // struct seccomp_notif_resp
			id    uint64
			val   int64
			error int32
			flags uint32
		}{id: ask.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		c.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&answer))
	}
}

func (c *calls) ioctl(request uintptr, p unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(c.listener), request, uintptr(p))
	return errno
}

// stepped is a portd that has begun, and its steps.
func stepped(t *testing.T, d *portdtest.Daemon) (*process, *calls) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "steps")
	p := portd(t, d, "")
	as := acting("steps", p.Args...)
	p.Path, p.Args, p.ExtraFiles, p.Env = as.Path, as.Args, []*os.File{theirs}, append(as.Env, p.Env...)
	err = p.Start()
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Process.Kill() // fails where it has ended
		_ = p.Wait()
	})
	c := &calls{process: p.Process}
	oob := make([]byte, unix.CmsgSpace(4))
	if _, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC); err != nil || n == 0 {
		p.ends(t)
		t.Skipf("needs seccomp(2) with user notification: %v %s", err, &p.log)
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		t.Fatal(err)
	}
	c.listener = fds[0]
	go c.serve()
	p.said(t, "READY=1")
	return p, c
}

// beStepped becomes the program of its arguments, each of whose steps waits for who is at the other end of descriptor 3.
func beStepped(args []string) error {
	runtime.LockOSThread()                                                              // the filter is this thread's, which makes the exec
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // seccomp_data.nr
	for _, nr := range steps {
		program = append(program,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: nr},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	}
	program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	unix.CloseOnExec(3)
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(fd)), nil, 0); err != nil {
		return fmt.Errorf("send the listener: %w", err)
	}
	return syscall.Exec(args[0], args, os.Environ())
}
