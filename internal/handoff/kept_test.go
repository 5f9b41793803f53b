package handoff_test

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

// next is the next message that portd sends on the attach connection, of a type.
func (w *rawWorker) next(want wire.Type) wire.Message {
	w.t.Helper()
	m, err := receive(w.UnixConn)
	if err != nil || m.Type != want {
		w.t.Fatalf("portd says %v (%v), want type %d", m.Type, err, want)
	}
	return m.Message
}

// over waits for the end of the attach connection and of the queue, of which the messages that are left are returned.
func (w *rawWorker) over() (left int) {
	w.t.Helper()
	for {
		if _, err := receive(w.UnixConn); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			w.t.Fatal(err)
		}
	}
	var in fdpass.Receiver
	until(w.t, "the queue is over", func() bool {
		for {
			_, _, fds, err := w.takeNow(&in)
			for _, fd := range fds {
				unix.Close(fd)
			}
			if err != nil {
				return errors.Is(err, io.EOF)
			}
			left++
		}
	})
	return left
}

// What workers say while portd is dead is heard by its successor, and what they were told before is known to it.
func TestSaidMeanwhile(t *testing.T) {
	nstest.Descriptors(t)
	d := newDynasty(t, registry.HandoffOptions{})
	lazy := d.host.attach(wire.Attach{Generation: "v1", Wishes: []wire.Wish{{Reference: dynastyID, Want: wire.WantConnections, Weight: 3, Priority: 1}}})
	busy := d.host.attach(wire.Attach{Wishes: []wire.Wish{connections(dynastyID)}})
	before := d.reign.ask(t)
	queued := d.clients(2)
	until(t, "something is in the queue", func() bool { return d.reign.ask(t).Totals.HandedOver > 0 })
	d.kill()
	if _, err := lazy.Write(wire.AppendReady(nil, wire.AllListeners)); err != nil {
		t.Fatal(err)
	}
	if _, err := busy.Write(wire.AppendDrain(nil, 0)); err != nil {
		t.Fatal(err)
	}
	d.begin()
	state := func(w *rawWorker) (s handoff.State) {
		for _, o := range d.reign.ask(t).Workers {
			if o.ID == w.got.ID {
				s = o.Listeners[0].State
			}
		}
		return s
	}
	until(t, "one is ready and the other drains", func() bool { return state(lazy) == handoff.Ready && state(busy) == handoff.Draining })
	after := d.reign.ask(t)
	for _, was := range before.Workers {
		for _, is := range after.Workers {
			if was.ID != is.ID {
				continue
			}
			if !was.Attached.Equal(is.Attached) || was.Generation != is.Generation || was.Command != is.Command || was.Caller != is.Caller ||
				was.Listeners[0].Weight != is.Listeners[0].Weight || was.Listeners[0].Priority != is.Listeners[0].Priority || was.Listeners[0].Room != is.Listeners[0].Room {
				t.Errorf("it was %+v and is %+v", was, is)
			}
		}
	}
	// It owes a DRAINED until the queue is empty, also to the next one.
	d.kill()
	d.begin()
	first := d.run(busy, 1)
	m := busy.next(wire.TypeDrained)
	if drained, err := wire.DecodeDrained(m); err != nil || drained.Sent == 0 {
		t.Errorf("%+v, %v", drained, err)
	}
	second := d.run(lazy, 2)
	late := d.clients(3)
	for i, c := range append(queued, late...) {
		answer, err := io.ReadAll(c)
		if err != nil || i >= len(queued) && string(answer) != "2" {
			t.Errorf("client %d: %q, %v", i, answer, err)
		}
	}
	for _, s := range []*scribe{first, second} {
		if _, wrong, _ := s.count(); wrong > 0 {
			t.Error("sequences are not in order")
		}
	}
}

// A worker dies, or lets go, while portd is dead: what lay in its queue goes to others.
func TestGoneMeanwhile(t *testing.T) {
	for _, how := range []string{"killed", "lets go"} {
		t.Run(how, func(t *testing.T) {
			nstest.Descriptors(t)
			d := newDynasty(t, registry.HandoffOptions{})
			var end func()
			if how == "killed" {
				cmd := exec.Command("/proc/self/exe")
				cmd.Env = append(os.Environ(), envAct+"=ignore", "HANDOFF_SOCKET="+d.socket, "HANDOFF_REF="+dynastyID)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				end = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
				defer end()
			} else {
				w := d.host.attach(wire.Attach{Wishes: []wire.Wish{connections(dynastyID)}})
				end = func() { w.Close() }
			}
			queued := d.clients(3)
			until(t, "something is in the queue", func() bool { return d.reign.ask(t).Totals.HandedOver > 0 })
			d.kill()
			end()
			d.begin()
			s := d.scribe(5, connections(dynastyID))
			for _, c := range queued {
				if answer, err := io.ReadAll(c); string(answer) != "5" || err != nil {
					t.Errorf("%q, %v", answer, err)
				}
			}
			if _, _, again := s.count(); again == 0 {
				t.Error("nothing was sent again")
			}
			until(t, "the keeper has one worker", func() bool { return d.names("w.") == 1 })
		})
	}
}

// Although the keeper has duplicates of them, an attachment's connection and queue end for the worker at once when it is let go, and
// what lies in the queue is its own.
func TestLetGoAlthoughKept(t *testing.T) {
	for _, how := range []string{"released", "released meanwhile", "stopped"} {
		t.Run(how, func(t *testing.T) {
			nstest.Descriptors(t)
			d := newDynasty(t, registry.HandoffOptions{})
			w := d.host.attach(wire.Attach{Wishes: []wire.Wish{connections(dynastyID)}})
			queued := d.clients(1)
			until(t, "something is in the queue", func() bool { return d.reign.ask(t).Totals.HandedOver > 0 })
			switch how {
			case "released":
				d.reign.does(t, "release")
				w.next(wire.TypeListenerGone)
			case "released meanwhile":
				d.kill()
				d.begin("HANDOFF_RELEASED=1")
				w.next(wire.TypeListenerGone)
			case "stopped":
				d.end()
			}
			if left := w.over(); left != 1 {
				t.Errorf("%d messages were left in the queue, want 1", left)
			}
			_, _ = io.ReadAll(queued[0])
			until(t, "the keeper has no worker", func() bool { return d.names("w.") == 0 })
			if how == "stopped" && d.names("ledger") != 0 {
				t.Error("the keeper has the ledger of a portd that has stopped")
			}
		})
	}
}

// A ledger that is not understood, as of a release to come, lets workers go as a stop does, and they attach again.
func TestStrangeLedger(t *testing.T) {
	nstest.Descriptors(t)
	d := newDynasty(t, registry.HandoffOptions{})
	w := d.host.attach(wire.Attach{Wishes: []wire.Wish{connections(dynastyID)}})
	d.kill()
	if _, err := unix.Pwrite(d.items["ledger"], []byte{0, 0, 0, 0, 99}, 0); err != nil {
		t.Fatal(err)
	}
	late := map[string]int{} // bags that the keeper is told to let go of, and may not have heard of when the next one dies
	for name, fd := range d.items {
		if strings.HasPrefix(name, "w.") {
			var err error
			if late[name], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	d.begin()
	if left := w.over(); left != 0 {
		t.Errorf("%d messages", left)
	}
	s := d.scribe(3, connections(dynastyID))
	if answer, err := io.ReadAll(d.clients(1)[0]); string(answer) != "3" || err != nil {
		t.Errorf("%q, %v", answer, err)
	}
	d.kill()
	for name, fd := range late {
		if old, there := d.items[name]; there {
			unix.Close(old)
		}
		d.items[name] = fd
	}
	d.begin()
	if answer, err := io.ReadAll(d.clients(1)[0]); string(answer) != "3" || err != nil {
		t.Errorf("%q, %v", answer, err)
	}
	_ = s
}

// A client has the same worker after portd was killed as before, also where a process has attached twice.
func TestStickyAfterKill(t *testing.T) {
	nstest.Descriptors(t)
	d := newDynasty(t, registry.HandoffOptions{Strategy: registry.ClientAddress})
	for i := range 4 {
		d.scribe(i, connections(dynastyID))
	}
	whose := func() (all [64]string) {
		for i := range all {
			all[i] = d.askFrom(t, byte(i+2))
		}
		return all
	}
	before := whose()
	for range 3 {
		d.kill()
		d.begin()
		if after := whose(); after != before {
			t.Errorf("clients had %v and have %v", before, after)
		}
	}
}

// askFrom asks from the address 127.1.1.n.
func (d *dynasty) askFrom(t *testing.T, n byte) string {
	t.Helper()
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, 1, n)}}
	c, err := from.Dial("tcp", d.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(c, "who?")
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

// A listener that refuses clients without a worker does not refuse any while its workers are on their way back, and begins to where
// they are gone.
func TestDoorsMeanwhile(t *testing.T) {
	nstest.Descriptors(t)
	d := newDynasty(t, registry.HandoffOptions{WithoutWorker: registry.Refuse})
	doors := func() string { return strings.Join(d.reign.ask(t).Doors, " ") }
	until(t, "nobody is let in", func() bool { return doors() == "refuse" })
	w := d.host.attach(wire.Attach{Wishes: []wire.Wish{connections(dynastyID)}})
	until(t, "clients are let in", func() bool { return doors() == "refuse admit" })
	d.kill()
	d.begin()
	until(t, "clients are let in again", func() bool { return doors() == "admit" })
	old := d.reign
	next := d.prepare()
	old.does(t, "suspend")
	d.enthrone(next)
	until(t, "clients are let in by the successor", func() bool { return doors() == "admit" })
	w.Close()
	until(t, "clients are refused", func() bool { return doors() == "admit refuse" })
	d.kill()
	old.does(t, "resume")
	d.reign = old
	until(t, "clients are refused by the one before", func() bool { return strings.HasSuffix(doors(), "refuse") })
}
