package binder_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// anybody lets everything be adopted: who may is the registry's to say.
func anybody(registry.Program) error { return nil }

func adopt(t testing.TB, b *binder.Binder, pid int, ep registry.Endpoint) (registry.Adoption, error) {
	t.Helper()
	return b.Adopt(t.Context(), registry.Adopt{Key: key(ep), PID: int32(pid), Endpoint: ep, May: anybody})
}

// answers fails the test unless there is somebody who listens.
func answers(t testing.TB, to string) {
	t.Helper()
	_ = dial(t, to).Close()
}

// listener is a stranger on ep that listens.
func listener(ep registry.Endpoint) stranger {
	return stranger{
		Type: unix.SOCK_STREAM, At: netip.AddrPortFrom(ep.Addr, ep.First), V6Only: ep.V6Only, Device: ep.Device, Listen: true,
	}
}

// What a program listens on, of whatever kind, is held when the program has ended, and when portd has made it listen no more.
func TestAdopt(t *testing.T) {
	for _, tt := range []struct {
		name, ep, dial string
		change         func(*stranger)
		opt            registry.BindOptions
	}{
		{name: "loopback", ep: "tcp/127.0.0.1:1", dial: "127.0.0.1"},
		{name: "with SO_REUSEADDR", ep: "tcp/127.0.0.1:1", dial: "127.0.0.1", change: func(s *stranger) { s.RA = true }},
		{name: "all IPv4", ep: "tcp4/1", dial: "127.0.0.1"},
		{name: "all", ep: "tcp/1", dial: "127.0.0.1", change: func(s *stranger) { s.RA = true }},
		{name: "all IPv6", ep: "tcp6/1", dial: "::1"},
		{name: "IPv6 loopback", ep: "tcp/[::1]:1", dial: "::1"},
		{name: "mapped", ep: "tcp/127.0.0.1:1", dial: "127.0.0.1", change: func(s *stranger) {
			s.At = netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), s.At.Port())
		}},
		{name: "device", ep: "tcp4/*%lo:1", dial: "127.0.0.1"},
		{
			name: "mptcp", ep: "tcp/127.0.0.1:1", dial: "127.0.0.1", opt: registry.BindOptions{MPTCP: true},
			change: func(s *stranger) { s.Proto = unix.IPPROTO_MPTCP },
		},
		{
			name: "mptcp, all", ep: "tcp/1", dial: "::1", opt: registry.BindOptions{MPTCP: true},
			change: func(s *stranger) { s.Proto, s.RA = unix.IPPROTO_MPTCP, true },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := &observer{}
			b := open(t, binder.Config{Observer: o})
			ep := at(t, tt.ep, port())
			s := listener(ep)
			if tt.change != nil {
				tt.change(&s)
			}
			var got registry.Adoption
			to := net.JoinHostPort(tt.dial, fmt.Sprint(ep.First))
			t.Run("from a program", func(t *testing.T) {
				program := startHost(t, nil) // until the end of this test
				if err := program.try(t, s); err != nil {
					t.Skipf("this kernel: %v", err)
				}
				var err error
				if got, err = adopt(t, b, program.pid, ep); err != nil {
					t.Fatal(err)
				}
				want := registry.Adoption{Endpoint: ep, Bind: tt.opt, Listen: registry.ListenOptions{Backlog: 16, NoDelayOff: true, KeepAliveOff: true}}
				if diff := cmp.Diff(want, registry.Adoption{Endpoint: got.Endpoint, Bind: got.Bind, Listen: got.Listen}, byValue); diff != "" {
					t.Errorf("adopted (-want +got):\n%s", diff)
				}
				if got.From.PID != program.pid || len(got.Others) != 1 || got.Others[0].PID != program.pid {
					t.Errorf("adopted from %+v, others %+v; want %d alone", got.From, got.Others, program.pid)
				}
				if hs := holders(t, b, ep); len(hs) > 0 {
					t.Errorf("what was adopted is still a stranger's: %v", hs)
				}
				answers(t, to)
			})
			if got.Endpoint != ep {
				t.Skip("nothing was adopted")
			}
			answers(t, to)
			keepsOut(t, ep)
			if err := b.Unlisten(key(ep)); err != nil {
				t.Fatal(err)
			}
			refused(t, to)
			keepsOut(t, ep)
			if err := b.Listen(t.Context(), key(ep), registry.ListenOptions{}); err != nil {
				t.Fatal(err)
			}
			answers(t, to)
			release(t, b, ep)
			refused(t, to)
		})
	}
}

// keepsOut tries thieves that overlap ep.
func keepsOut(t *testing.T, ep registry.Endpoint) {
	t.Helper()
	for _, s := range thieves(unix.SOCK_STREAM, ep.First) {
		s.Device = ep.Device
		if fd, err := s.try(); err == nil {
			unix.Close(fd)
			if s.place(ep.Proto).Overlaps(ep) {
				t.Errorf("%v: %v got in", ep, s)
			}
		}
	}
}

// Of several processes that have the socket, as a master and its children do, all are named.
func TestAdoptFromSeveral(t *testing.T) {
	b := open(t, binder.Config{})
	ep := at(t, "tcp/127.0.0.1:1", port())
	fd, err := listener(ep).try()
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	var pids []int
	for range 2 {
		cmd := exec.Command("sleep", "60")
		cmd.ExtraFiles = []*os.File{f}
		if err := cmd.Start(); err != nil {
			t.Skipf("needs sleep(1): %v", err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		pids = append(pids, cmd.Process.Pid)
	}
	f.Close()
	got, err := adopt(t, b, pids[1], ep)
	if err != nil {
		t.Fatal(err)
	}
	var others []int
	for _, p := range got.Others {
		others = append(others, p.PID)
	}
	slices.Sort(others)
	slices.Sort(pids)
	if !slices.Equal(others, pids) {
		t.Errorf("also open in %v, want %v", others, pids)
	}
}

// A port of the kernel's choice is lost to a socket that listens no more; an adopted one has it back before anybody.
func TestAdoptedPortOfTheKernelsChoice(t *testing.T) {
	b := open(t, binder.Config{})
	fd := stranger{Type: unix.SOCK_STREAM, At: at4(0), Listen: true}.open(t)
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	ep := at(t, "tcp/127.0.0.1:1", uint16(sa.(*unix.SockaddrInet4).Port))
	if _, err := adopt(t, b, os.Getpid(), ep); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Unlisten(key(ep)); err != nil {
			t.Fatal(err)
		}
		keepsOut(t, ep)
		listen(t, b, ep)
		answers(t, ep.Addr.String()+":"+fmt.Sprint(ep.First))
	}
}

// Released, the socket is the program's again as it was before; stopped first or lent out, it is not.
func TestReleaseGivesBack(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(testing.TB, *binder.Binder, registry.Endpoint)
		serves bool
	}{
		{"at once", func(testing.TB, *binder.Binder, registry.Endpoint) {}, true},
		{"lent and returned", func(t testing.TB, b *binder.Binder, ep registry.Endpoint) {
			unix.Close(lendOne(t, b, ep))
			b.Return(key(ep))
		}, true},
		{"listening with other options", func(t testing.TB, b *binder.Binder, ep registry.Endpoint) {
			if err := b.Listen(t.Context(), key(ep), registry.ListenOptions{Backlog: 3}); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"lent", func(t testing.TB, b *binder.Binder, ep registry.Endpoint) { unix.Close(lendOne(t, b, ep)) }, false},
		{"stopped", func(t testing.TB, b *binder.Binder, ep registry.Endpoint) {
			if err := b.Unlisten(key(ep)); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := &observer{}
			b := open(t, binder.Config{Observer: o})
			ep := at(t, "tcp/127.0.0.1:1", port())
			fd := listener(ep).open(t)
			if _, err := adopt(t, b, os.Getpid(), ep); err != nil {
				t.Fatal(err)
			}
			tt.before(t, b, ep)
			release(t, b, ep)
			to := ep.Addr.String() + ":" + fmt.Sprint(ep.First)
			if !tt.serves {
				refused(t, to)
				return
			}
			answers(t, to)
			if ra, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR); err != nil || ra != 0 {
				t.Errorf("SO_REUSEADDR is %d, %v; the program had it off", ra, err)
			}
			if ka, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE); err != nil || ka != 0 {
				t.Errorf("SO_KEEPALIVE is %d, %v; the program had it off", ka, err)
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
				t.Errorf("the program's accept no longer waits: %x, %v", flags, err)
			}
			if len(holders(t, b, ep)) == 0 {
				t.Error("the program's socket is still taken for portd's")
			}
		})
	}
}

// Until somebody else is to have the socket, nothing that the program could notice changes.
func TestAdoptLeavesBlockingAlone(t *testing.T) {
	b := open(t, binder.Config{})
	ep := at(t, "tcp/127.0.0.1:1", port())
	fd := listener(ep).open(t)
	nonblocking := func() bool {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil {
			t.Fatal(err)
		}
		return flags&unix.O_NONBLOCK != 0
	}
	if _, err := adopt(t, b, os.Getpid(), ep); err != nil {
		t.Fatal(err)
	}
	if nonblocking() {
		t.Error("the program's accept no longer waits once it is adopted")
	}
	unix.Close(lendOne(t, b, ep))
	if !nonblocking() {
		t.Error("what is lent blocks")
	}
}

func TestAdoptRefuses(t *testing.T) {
	b := open(t, binder.Config{})
	ep := at(t, "tcp/127.0.0.1:1", port())
	group := at(t, "tcp/127.0.0.1:1", port())
	bound := at(t, "tcp/127.0.0.1:1", port())
	own := at(t, "tcp/127.0.0.1:1", port())
	program, other := startHost(t, nil), startHost(t, nil)
	two := listener(ep)
	two.At = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), ep.First)
	shared := listener(group)
	shared.RP = true
	only := listener(bound)
	only.Listen = false
	for _, s := range []stranger{listener(ep), two, shared, shared, only} {
		if err := program.try(t, s); err != nil {
			t.Fatal(err)
		}
	}
	hold(t, b, own)
	listen(t, b, own)
	denied := errors.New("denied by the test")
	for _, tt := range []struct {
		name string
		want registry.Adopt
		is   error
		says string
	}{
		{"which address", registry.Adopt{PID: int32(program.pid), Endpoint: at(t, "tcp/1", ep.First), AnyAddr: true}, registry.ErrInvalid, "tcp/127.0.0.2:"},
		{"not that address", registry.Adopt{PID: int32(program.pid), Endpoint: at(t, "tcp/127.0.0.3:1", ep.First)}, registry.ErrNotFound, "does not listen"},
		{"SO_REUSEPORT", registry.Adopt{PID: int32(program.pid), Endpoint: group}, registry.ErrUnsupported, "SO_REUSEPORT"},
		{"bound only", registry.Adopt{PID: int32(program.pid), Endpoint: bound}, registry.ErrNotFound, "does not listen"},
		{"another process", registry.Adopt{PID: int32(other.pid), Endpoint: ep}, registry.ErrNotFound, "does not listen"},
		{"no process", registry.Adopt{PID: 1 << 22, Endpoint: ep}, registry.ErrNotFound, "no process"},
		{"portd's own", registry.Adopt{PID: int32(os.Getpid()), Endpoint: own}, registry.ErrTaken, own.String()},
		{"not permitted", registry.Adopt{PID: int32(program.pid), Endpoint: ep, May: func(registry.Program) error { return denied }}, denied, ""},
		{"another namespace", registry.Adopt{PID: int32(program.pid), Endpoint: registry.Endpoint{
			Netns: "elsewhere", Proto: registry.TCP, Addr: ep.Addr, First: ep.First, Last: ep.Last,
		}}, registry.ErrUnsupported, "namespace"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.Key = key(ep)
			if tt.want.May == nil {
				tt.want.May = anybody
			}
			_, err := b.Adopt(t.Context(), tt.want)
			if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v; want %v that says %q", err, tt.is, tt.says)
			}
			if _, err := b.Options(key(ep)); err == nil {
				t.Error("it was adopted all the same")
			}
		})
	}
}

// It may become another program while it is looked at: it is asked once more when its socket is had.
func TestAdoptAsksTwice(t *testing.T) {
	b := open(t, binder.Config{})
	ep := at(t, "tcp/127.0.0.1:1", port())
	listener(ep).open(t)
	asked, denied := 0, errors.New("denied by the test")
	_, err := b.Adopt(t.Context(), registry.Adopt{Key: key(ep), PID: int32(os.Getpid()), Endpoint: ep, May: func(p registry.Program) error {
		if asked++; asked == 1 {
			return nil
		}
		return denied
	}})
	if !errors.Is(err, denied) || asked != 2 {
		t.Errorf("%v after %d questions", err, asked)
	}
	if _, err := b.Options(key(ep)); err == nil {
		t.Error("it was adopted all the same")
	}
}

// Without privileges a portd adopts from programs of its own user, and says of others which capability it lacks.
func TestAdoptAsNobody(t *testing.T) {
	if !isNobody() {
		ep := at(t, "tcp/127.0.0.1:1", port())
		program := startHost(t, nil)
		if err := program.try(t, listener(ep)); err != nil {
			t.Fatal(err)
		}
		asNobody(t, fmt.Sprintf("ADOPT=%d", program.pid), fmt.Sprintf("ADOPT_PORT=%d", ep.First))
		return
	}
	b := open(t, binder.Config{})
	var pid, theirs int
	if _, err := fmt.Sscan(os.Getenv("ADOPT")+" "+os.Getenv("ADOPT_PORT"), &pid, &theirs); err != nil {
		t.Fatal(err)
	}
	_, err := adopt(t, b, pid, at(t, "tcp/127.0.0.1:1", uint16(theirs)))
	var lacks *registry.UnsupportedError
	if !errors.As(err, &lacks) || lacks.Code != "MISSING_CAPABILITY" || !strings.Contains(lacks.Why, "CAP_SYS_PTRACE") {
		t.Errorf("root's: %v; want what capability is missing", err)
	}
	own := at(t, "tcp/127.0.0.1:1", port())
	program := startHost(t, nil)
	if err := program.try(t, listener(own)); err != nil {
		t.Fatal(err)
	}
	got, err := adopt(t, b, program.pid, own)
	if err != nil {
		t.Errorf("nobody's own: %v", err)
	}
	if got.From.UID != uint32(os.Geteuid()) {
		t.Errorf("adopted from %+v", got.From)
	}
	answers(t, own.Addr.String()+":"+fmt.Sprint(own.First))
}
