package handoff_test

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
)

// What holds with one acceptor holds with several.
func TestSeveralAcceptors(t *testing.T) {
	t.Setenv(envAcceptors, "4")
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"nothing lost", TestNothingLost},
		{"killed under load", TestKilledUnderLoad},
		{"killed in recovery", TestKilledInRecovery},
		{"upgraded under load", TestUpgradedUnderLoad},
		{"take-back race", TestTakeBackRace},
		{"drained under load", TestDrainedUnderLoad},
		{"out of descriptors at an accept", TestOutOfDescriptorsAtAnAccept},
		{"connections of a range", TestConnectionsOfARange},
		{"shares", TestShares},
		{"priority", TestPriority},
		{"at rest", TestAtRest},
	} {
		t.Run(test.name, test.run)
	}
}

// Several acceptors do have their part in the work, on one listener.
func TestAcceptorsShareTheWork(t *testing.T) {
	t.Setenv(envAcceptors, "4")
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	for range 4 {
		defer h.worker("serve64", res.ID).kill(t)
	}
	threads := h.Threads(keyOf(res))
	before := runTimes(t, threads)
	l := newLoad(t, res.Assigned[0].Endpoint.First, 64)
	until(t, "each has worked", func() bool {
		if _, _, err := l.run(50 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		for i, now := range runTimes(t, threads) {
			if now-before[i] < 5*time.Millisecond {
				return false
			}
		}
		return true
	})
}

// Acceptors that have nothing to do, or nobody to give it to, do nothing.
func TestAtRest(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	threads := h.Threads(keyOf(res))
	rests := func(when string) {
		t.Helper()
		before := runTimes(t, threads)
		time.Sleep(300 * time.Millisecond) // it is this time that is measured
		for i, now := range runTimes(t, threads) {
			if spent := now - before[i]; spent > 30*time.Millisecond {
				t.Errorf("%s acceptor %d used the processor for %v", when, i, spent)
			}
		}
	}
	rests("without a worker")
	queued := []net.Conn{dial(t, addrOf(res))}
	rests("with a client and no worker")
	defer h.worker("ignore", res.ID).kill(t)
	for range 20 {
		queued = append(queued, dial(t, addrOf(res)))
	}
	until(t, "the queue is full", func() bool {
		got := h.Totals(keyOf(res))
		return got.HandedOver > 0 && got.HandedOver+uint64(got.Waiting) == uint64(len(queued))
	})
	rests("with full queues")
	h.options(res, registry.HandoffOptions{Strategy: registry.ClientAddress})
	rests("where the client's address decides, with full queues")
}

// runTimes is for how long threads have had a processor.
func runTimes(t *testing.T, threads []int) (all []time.Duration) {
	t.Helper()
	for _, tid := range threads {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/schedstat", tid))
		if err != nil {
			t.Skip("needs CONFIG_SCHED_INFO: ", err)
		}
		ns, err := strconv.ParseInt(strings.Fields(string(stat))[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, time.Duration(ns))
	}
	return all
}

// Portds with one acceptor and with several take over from one another under load.
func TestAcceptorsComeAndGo(t *testing.T) {
	nstest.Descriptors(t)
	d := begun(t, &dynasty{holders: true})
	var scribes []*scribe
	for i := range 3 {
		scribes = append(scribes, d.scribe(i, connections(dynastyID)))
	}
	a, stop := d.load(16)
	defer stop()
	kills := repeat(8, 100)
	for i := range kills {
		d.reign.ask(t)
		d.kill()
		d.begin(envAcceptors + "=" + []string{"8", "1", "3"}[i%3])
	}
	stop()
	d.settled(t, a, scribes, d.reign.ask(t).Totals, kills)
}
