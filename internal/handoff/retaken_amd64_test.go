package handoff_test

import (
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

// portd is killed when it has just taken a message back from a worker, before it has written that down, and the worker wakes up in that
// instant: it takes the message that portd was after, of which portd then has the next one, or the one that comes after. Each
// connection is one worker's.
func TestKilledTakingBack(t *testing.T) {
	t.Setenv(envAcceptors, "1") // who is the one to be traced
	for _, test := range []struct {
		name         string
		faster       bool
		mine, others int // which client is answered by it, and which by another one
	}{
		{"the worker is faster", true, 0, 1},
		{"portd is faster", false, 1, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			nstest.Descriptors(t)
			d := begun(t, &dynasty{options: registry.HandoffOptions{TakeBackAfter: 200 * time.Millisecond}, holders: true})
			w := d.host.attach(wire.Attach{Room: 4, Wishes: []wire.Wish{connections(dynastyID)}})
			queued := d.clients(1)
			until(t, "the first is in the queue", func() bool { return d.reign.ask(t).Totals.HandedOver == 1 })
			queued = append(queued, d.clients(1)...)
			until(t, "so is the second", func() bool { return d.reign.ask(t).Totals.HandedOver == 2 })
			if _, err := w.Write(wire.AppendDrain(nil, 0)); err != nil { // so that nothing comes back to it
				t.Fatal(err)
			}

			var answers []int
			takes := func() error {
				var in fdpass.Receiver
				w.page.BeginTake()
				sequence, conns, fds, err := w.takeNow(&in)
				w.page.EndTake(sequence, len(conns))
				answers = append(answers, fds...)
				return err
			}
			err := d.traced(func(tid int) error {
				var regs unix.PtraceRegs
				before := takes
				if !test.faster {
					before = nil
				}
				return call(tid, &regs, unix.SYS_RECVMSG, func() bool { return regs.Rdx&unix.MSG_PEEK == 0 }, before)
			})
			if errors.Is(err, errUntraced) {
				t.Skip(err)
			}
			if err == nil && !test.faster {
				err = takes()
			}
			if err != nil || len(answers) != 1 {
				t.Fatalf("the worker has %d connections, %v; want one", len(answers), err)
			}
			if _, err := unix.Write(answers[0], []byte("1")); err != nil {
				t.Fatal(err)
			}
			unix.Close(answers[0])

			d.begin()
			m := w.next(wire.TypeDrained)
			if drained, err := wire.DecodeDrained(m); err != nil || drained.Sent != 1 {
				t.Errorf("it is told that it was sent %d, %v; want 1", drained.Sent, err)
			}
			d.scribe(5, connections(dynastyID))
			for client, want := range map[int]string{test.mine: "1", test.others: "5"} {
				answer, err := io.ReadAll(queued[client])
				if string(answer) != want || err != nil && !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("client %d: %q, %v; want %s", client, answer, err, want)
				}
			}
			got := d.reign.ask(t).Totals
			if got.HandedOver != 3 || got.Redelivered != 1 || got.Lost != 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}
