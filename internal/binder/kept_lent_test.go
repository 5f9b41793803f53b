package binder_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// A program that has a socket goes on having it: what is queued stays, what comes is queued, and with its return all is as ever.
func TestKeptLoan(t *testing.T) {
	w := keep(t, binder.Config{Grace: time.Hour})
	ep := at(t, "udp/127.0.0.1:1", port())
	hold(t, w.b, ep)
	program := borrow(t, w.b, ep)
	send(t, ep, "before")
	w.die()
	send(t, ep, "between")
	w.begin()
	hold(t, w.b, ep)
	if !w.b.Lent(key(ep)) {
		t.Error("nobody is thought to have it")
	}
	send(t, ep, "bound")
	if err := w.b.Relend(key(ep), program.lent...); err != nil {
		t.Fatal(err)
	}
	w.unclaimed(0)
	send(t, ep, "after")
	if got := fmt.Sprint(program.all()); got != "[before between bound after]" {
		t.Errorf("the program received %s", got)
	}
	other := at(t, "udp/127.0.0.1:1", port())
	hold(t, w.b, other)
	for what, err := range map[string]error{
		"no such key": w.b.Relend(key(at(t, "udp/127.0.0.1:1", 9)), program.lent...),
		"bound anew":  w.b.Relend(key(other), program.lent...),
		"no member":   w.b.Relend(key(ep), registry.Socket{Member: 1}),
	} {
		if !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", what, err)
		}
	}
	// A later loan is told from the restored one.
	second, err := w.b.Lend(key(ep))
	if err != nil {
		t.Fatal(err)
	}
	if second[0].Loan <= program.lent[0].Loan {
		t.Errorf("loan %d after %d", second[0].Loan, program.lent[0].Loan)
	}
	_ = unix.Close(second[0].FD)
	w.b.Return(key(ep), second...)
	send(t, ep, "still")
	program.b = w.b
	if got := fmt.Sprint(program.all()); got != "[still]" {
		t.Errorf("the program received %s", got)
	}
	program.leave()
	release(t, w.b, ep)
	wantAllFree(t, ep)
}

// What the one before lends while the next one begins, in an upgrade, is lent all the same.
func TestKeptLoanLate(t *testing.T) {
	for _, group := range []int{0, 3} {
		w := keep(t, binder.Config{Grace: -1})
		ep := at(t, "udp/127.0.0.1:1", port())
		holdGroup(t, w.b, ep, group)
		old, oldStore := w.b, w.store
		oldStore.Settle(t.Context()) // the keeper hears the next one on another connection
		oldStore.Mute()
		w.store = w.attached()
		w.open()
		holdGroup(t, w.b, ep, group)
		first := borrow(t, old, ep)
		w.unclaimed(0)
		send(t, ep, "before")
		if err := w.b.Relend(key(ep), first.lent...); err != nil {
			t.Fatal(err)
		}
		send(t, ep, "after")
		if got := fmt.Sprint(first.all()); !strings.HasSuffix(got, "after]") {
			t.Errorf("group of %d: the program received %s", group, got)
		}
		old.Close()
		oldStore.Close()
		first.b = w.b
		first.leave()
		release(t, w.b, ep)
		if left := w.names(); len(left) > 0 {
			t.Errorf("the keeper has %v", left)
		}
	}
}

// A program that ended while nobody looked after its socket has a successor, too: what is queued waits for it, for the grace.
func TestKeptQueue(t *testing.T) {
	for _, grace := range []time.Duration{time.Hour, time.Millisecond, -1} {
		w := keep(t, binder.Config{Grace: grace})
		ep := at(t, "udp/127.0.0.1:1", port())
		hold(t, w.b, ep)
		program := borrow(t, w.b, ep)
		send(t, ep, "before")
		w.die()
		spy := program.lent[0].FD // which the binder does not know of
		w.begin()
		hold(t, w.b, ep)
		w.unclaimed(0)
		if grace == time.Hour {
			_ = unix.Close(spy)
			send(t, ep, "after")
			program = borrow(t, w.b, ep)
			if got := fmt.Sprint(program.all()); got != "[before after]" {
				t.Errorf("the next program received %s", got)
			}
			program.leave()
		} else {
			for deadline := time.Now().Add(5 * time.Second); ; {
				if _, _, err := unix.Recvfrom(spy, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT); errors.Is(err, unix.EAGAIN) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("what nobody came for is still queued after 5 s")
				}
			}
			send(t, ep, "too late")
			if got, err := receive(spy); !errors.Is(err, unix.EAGAIN) {
				t.Errorf("received %q, %v", got, err)
			}
			_ = unix.Close(spy)
		}
		// Silent as it is it is the next Binder's, too.
		w.b.Return(key(ep))
		w.die()
		w.begin()
		hold(t, w.b, ep)
		w.unclaimed(0)
		release(t, w.b, ep)
		wantAllFree(t, ep)
	}
}

// Of a group every client stays with its program, and no datagram is lost.
func TestKeptGroup(t *testing.T) {
	const clients = 100
	w := keep(t, binder.Config{Grace: time.Hour})
	ep := at(t, "udp/127.0.0.1:1", port())
	holdGroup(t, w.b, ep, 4)
	programs := []*borrower{borrow(t, w.b, ep), borrow(t, w.b, ep), borrow(t, w.b, ep)}
	var conns [clients]*net.UDPConn
	for i := range conns {
		conns[i] = client(t, ep)
	}
	say := func() {
		for i, c := range conns {
			if _, err := c.Write([]byte(fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	heard := func() (at [clients]int) {
		for n, p := range programs {
			for _, text := range p.all() {
				var i int
				_, _ = fmt.Sscan(text, &i)
				at[i] += 100 + n // how often, and by whom
			}
		}
		return at
	}
	say()
	once := heard()
	say()
	w.die()
	say()
	w.begin()
	holdGroup(t, w.b, ep, 4)
	say()
	for i, p := range programs {
		if err := w.b.Relend(key(ep), p.lent...); err != nil {
			t.Fatal(err)
		}
		p.b = w.b
		if i == 0 {
			say()
		}
	}
	w.unclaimed(0)
	say()
	want := once
	for i := range want {
		want[i] *= 5
	}
	if got := heard(); got != want {
		t.Errorf("clients came to %v, want %v", got, want)
	}
	fourth := borrow(t, w.b, ep)
	for _, p := range programs {
		if p.lent[0].Member == fourth.lent[0].Member {
			t.Errorf("a fourth program has member %d as another one", p.lent[0].Member)
		}
		p.leave()
	}
	fourth.leave()
	release(t, w.b, ep)
}

// A group in bags is a group again.
func TestKeptGroupInBags(t *testing.T) {
	needMessages(t)
	w := keep(t, binder.Config{Spare: 50, Grace: -1})
	limit(t, 300)
	group := at(t, "udp/127.0.0.1:1", port())
	holdGroup(t, w.b, group, 5)
	p := borrow(t, w.b, group)
	p.leave()
	first := ports(500)
	many := func() {
		t.Helper()
		for i := range 500 {
			hold(t, w.b, at(t, "tcp/1", first+uint16(i)))
		}
	}
	many()
	bags := 0
	for _, name := range w.names() {
		switch name[0] {
		case 'g':
			t.Errorf("%s is not in a bag", name)
		case 'b':
			bags++
		}
	}
	if bags == 0 {
		t.Fatal("there are no bags")
	}
	socks := w.sockets()
	w.die()
	w.begin()
	many()
	holdGroup(t, w.b, group, 5)
	w.unclaimed(0)
	if fmt.Sprint(w.sockets()) != fmt.Sprint(socks) {
		t.Error("the sockets are others")
	}
	c := client(t, group)
	for i := range 5 {
		p := borrow(t, w.b, group)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if n := len(p.all()); n != 1 {
			t.Errorf("program %d received %d of 1", i, n)
		}
		p.leave()
	}
}

// What was adopted stays so: the program and portd both accept, and a release leaves it to the program as it was.
func TestKeptAdopted(t *testing.T) {
	for _, lent := range []bool{false, true} {
		o := &observer{}
		w := keep(t, binder.Config{Observer: o})
		ep := at(t, "tcp/127.0.0.1:1", port())
		fd := listener(ep).open(t)
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77); err != nil {
			t.Fatal(err)
		}
		got, err := adopt(t, w.b, os.Getpid(), ep)
		if errors.Is(err, registry.ErrUnsupported) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
		if lent {
			program := lendOne(t, w.b, ep)
			_ = unix.Close(program)
			w.b.Return(key(ep))
		}
		socks := w.sockets()
		to := ep.Addr.String() + ":" + fmt.Sprint(ep.First)
		w.die()
		answers(t, to)
		w.begin()
		hold(t, w.b, ep)
		opt := got.Listen
		opt.Backlog, opt.KeepAliveIdle = 9, 88*time.Second
		if err := w.b.Listen(t.Context(), key(ep), opt); err != nil {
			t.Fatal(err)
		}
		w.unclaimed(0)
		if len(o.last) != 1 || !o.last[0].Adopted || !w.b.Lent(key(ep)) {
			t.Errorf("it is not adopted any more: %+v", o.last)
		}
		if fmt.Sprint(w.sockets()) != fmt.Sprint(socks) {
			t.Error("the socket is another")
		}
		answers(t, to)
		release(t, w.b, ep)
		if left := w.names(); len(left) > 0 {
			t.Errorf("the keeper has %v", left)
		}
		answers(t, to)
		for what, opt := range map[string][3]int{
			"SO_REUSEADDR": {unix.SOL_SOCKET, unix.SO_REUSEADDR, 0},
			"SO_KEEPALIVE": {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0},
			"TCP_KEEPIDLE": {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77},
		} {
			if n, err := unix.GetsockoptInt(fd, opt[0], opt[1]); err != nil || n != opt[2] {
				t.Errorf("%s is %d, %v; the program had %d", what, n, err, opt[2])
			}
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("the program's accept no longer waits: %x, %v", flags, err)
		}
	}
}

// One that nobody wants is the program's again.
func TestUnclaimedAdopted(t *testing.T) {
	w := keep(t, binder.Config{})
	ep := at(t, "tcp/127.0.0.1:1", port())
	fd := listener(ep).open(t)
	if _, err := adopt(t, w.b, os.Getpid(), ep); errors.Is(err, registry.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	w.die()
	w.begin()
	w.unclaimed(1)
	answers(t, ep.Addr.String()+":"+fmt.Sprint(ep.First))
	if ra, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR); err != nil || ra != 0 {
		t.Errorf("SO_REUSEADDR is %d, %v; the program had it off", ra, err)
	}
	if left := w.names(); len(left) > 0 {
		t.Errorf("the keeper has %v", left)
	}
}

// A program that has a held socket may listen itself; that goes on, and ends when the program is gone.
func TestKeptListensItself(t *testing.T) {
	w := keep(t, binder.Config{})
	ep := at(t, "tcp/127.0.0.1:1", port())
	to := fmt.Sprintf("127.0.0.1:%d", ep.First)
	hold(t, w.b, ep)
	program := borrow(t, w.b, ep)
	if err := unix.Listen(program.lent[0].FD, 5); err != nil {
		t.Fatal(err)
	}
	again := func() {
		t.Helper()
		w.die()
		w.begin()
		hold(t, w.b, ep)
	}
	again()
	if err := w.b.Relend(key(ep), program.lent...); err != nil {
		t.Fatal(err)
	}
	w.unclaimed(0)
	dial(t, to).Close()
	again()
	w.unclaimed(0) // nobody has it any more
	refused(t, to)
	wantKept(t, ep)
	_ = unix.Close(program.lent[0].FD)
	release(t, w.b, ep)
	wantAllFree(t, ep)
}
