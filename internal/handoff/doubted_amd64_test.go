package handoff_test

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/wire"
)

// portd is killed when it was about to send a message to a worker that is just looking for one. Whether that has it nobody can tell until it
// has looked, and what the next portd sends meanwhile must not be taken for it.
func TestKilledBeforeALookingWorker(t *testing.T) {
	t.Setenv(envAcceptors, "1")         // else another one sends it
	for _, again := range []int{1, 2} { // the next portd may die while it does not know, too
		nstest.Descriptors(t)
		d := begun(t, &dynasty{holders: true})
		w := d.host.attach(wire.Attach{Room: 4, Wishes: []wire.Wish{connections(dynastyID)}})
		d.reign.ask(t)
		w.page.BeginTake()
		var first net.Conn
		enough := errors.New("it is about to send it")
		err := d.traced(func(tid int) error {
			first = d.clients(1)[0]
			var regs unix.PtraceRegs
			return call(tid, &regs, unix.SYS_SENDMSG, func() bool { return true }, func() error { return enough })
		})
		if errors.Is(err, errUntraced) {
			t.Skip(err)
		}
		if !errors.Is(err, enough) {
			t.Fatal(err)
		}
		d.begin()
		for range again - 1 {
			d.kill()
			d.begin()
		}
		second := d.clients(1)[0]
		var in fdpass.Receiver
		poll := []unix.PollFd{{Fd: int32(w.queue), Events: unix.POLLIN}}
		_, _ = unix.Poll(poll, 100) // it takes what there is, if there is something
		sequence, conns, fds, err := w.takeNow(&in)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
		for _, fd := range fds {
			_, _ = unix.Write(fd, []byte("9"))
			unix.Close(fd)
		}
		w.page.EndTake(sequence, len(conns))
		began := time.Now()
		d.run(w, 9)
		for i, c := range []io.Reader{first, second} {
			if answer, err := io.ReadAll(c); string(answer) != "9" {
				t.Errorf("client %d of a worker after %d deaths: %q, %v", i+1, again, answer, err)
			}
		}
		if got := d.reign.ask(t).Totals; got.Lost != 0 || got.HandedOver-got.Redelivered != 2 {
			t.Errorf("%+v", got)
		}
		t.Logf("known after %v", time.Since(began))
	}
}
