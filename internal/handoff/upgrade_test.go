package handoff_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

// One portd takes the place of another under load, or does not come that far, or dies when it has: then the one before goes on. Nothing is
// lost, but what one that dies has in its hands.
func TestUpgradedUnderLoad(t *testing.T) {
	for _, test := range []struct {
		name    string
		options registry.HandoffOptions
	}{
		{"least active", registry.HandoffOptions{}},
		{"by address", registry.HandoffOptions{Strategy: registry.ClientAddress}},
	} {
		t.Run(test.name, func(t *testing.T) {
			nstest.Descriptors(t)
			d := newDynasty(t, test.options)
			var scribes []*scribe
			for i := range 3 {
				scribes = append(scribes, d.scribe(i, connections(dynastyID)))
			}
			a, stop := d.load(16)
			defer stop()
			deaths := 0
			for i := range repeat(6, 150) {
				time.Sleep(time.Duration(rand.IntN(10_000)) * time.Microsecond)
				old := d.reign
				next := d.prepare()
				old.does(t, "suspend")
				switch i % 3 {
				case 0: // it takes the place
					d.enthrone(next)
					old.does(t, "abandon")
					old.end()
				case 1: // it dies before
					_ = next.Process.Kill()
					close(next.kept)
					next.end()
					old.does(t, "resume")
				case 2: // it dies after
					d.enthrone(next)
					time.Sleep(time.Duration(rand.IntN(10_000)) * time.Microsecond)
					d.kill()
					deaths++
					old.does(t, "resume")
					d.reign = old
				}
			}
			stop()
			got := d.reign.ask(t)
			d.settled(t, a, scribes, got.Totals, deaths)
			if len(got.Workers) != len(scribes) || got.Totals.Held != 0 {
				t.Errorf("%d workers are left of %d, %d connections are in hand", len(got.Workers), len(scribes), got.Totals.Held)
			}
		})
	}
}

// What a worker says to a portd that is suspended is heard by who goes on: the one before, or its successor. Nobody attaches meanwhile, and who
// tries is attached then.
func TestSaidToSuspended(t *testing.T) {
	for _, goesOn := range []string{"the one before", "the successor"} {
		t.Run(goesOn, func(t *testing.T) {
			nstest.Descriptors(t)
			d := newDynasty(t, registry.HandoffOptions{})
			w := d.host.attach(wire.Attach{Wishes: []wire.Wish{connections(dynastyID)}})
			old := d.reign
			next := d.prepare()
			old.does(t, "suspend")
			if _, err := w.Write(wire.AppendDrain(nil, 0)); err != nil {
				t.Fatal(err)
			}
			late := d.dial()
			if _, err := late.Write(attachMessage(dynastyID)); err != nil {
				t.Fatal(err)
			}
			if got := old.ask(t).Workers; len(got) != 1 || got[0].Listeners[0].State != handoff.Ready {
				t.Errorf("while suspended it has %+v", got)
			}
			if goesOn == "the successor" {
				d.enthrone(next)
				old.does(t, "abandon")
				old.end()
			} else {
				_ = next.Process.Kill()
				close(next.kept)
				next.end()
				old.does(t, "resume")
			}
			w.next(wire.TypeDrained)
			m, err := receive(late)
			if err != nil || m.Type != wire.TypeAttached {
				t.Errorf("who attached late is told %v, %v", m.Type, err)
			}
			m.close()
		})
	}
}

// A portd that has handed over hears nothing more of what workers say: it is for its successor, however late that listens.
func TestSaidAfterAll(t *testing.T) {
	nstest.Descriptors(t)
	d := newDynasty(t, registry.HandoffOptions{})
	w := d.host.attach(wire.Attach{Wishes: []wire.Wish{connections(dynastyID)}})
	old := d.reign
	next := d.prepare()
	old.does(t, "suspend")
	old.does(t, "abandon")
	if _, err := w.Write(wire.AppendDrain(nil, 0)); err != nil {
		t.Fatal(err)
	}
	_ = w.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if m, err := receive(w.UnixConn); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("who has handed over answers %v, %v", m.Type, err)
	}
	_ = w.SetReadDeadline(time.Now().Add(20 * time.Second))
	d.enthrone(next)
	w.next(wire.TypeDrained)
	old.end()
}

// A portd that is suspended waits for no connections any more. Where several threads do, the kernel tells one of all that wait, in whichever
// process, and a portd that hands nothing over is not to be told in place of the one that does.
func TestSuspendedIsNotTold(t *testing.T) {
	nstest.Descriptors(t)
	t.Setenv(envAcceptors, "4")
	d := newDynasty(t, registry.HandoffOptions{})
	d.scribe(0, connections(dynastyID))
	old := d.reign
	next := d.prepare()
	old.does(t, "suspend")
	d.enthrone(next)
	a := &account{by: map[int]int{}, received: map[int]int{}}
	served := func(n int, by string) {
		t.Helper()
		for range n { // one after the other: the next would have it noticed that the last one waits
			if a.ask(d.addr); len(a.failed) > 0 {
				t.Fatalf("%s serves nobody: %v", by, a.failed)
			}
		}
	}
	served(8, "the successor")
	d.kill()
	old.does(t, "resume")
	d.reign = old
	served(8, "the one before")
}
