package skew_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A portd is upgraded to the other release and rolled back, while workers of both serve in each language, clients connect, sessions last
// and somebody watches. Nobody notices, and what one has recorded the other has too.
func TestUpgrade(t *testing.T) {
	directions(t, func(t *testing.T, first, second *release) {
		s := open(t)
		s.install(first)
		s.start()
		s.runs(first, first)
		s.furnish()
		session, err := s.client.OpenSession(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.populate(first, second)
		for _, r := range []*release{first, second} {
			s.watch(r)
		}
		all := s.change(first, second)
		s.serves()
		for _, to := range []*release{second, first, second} {
			began := time.Now()
			s.upgrade(map[bool]*release{true: first, false: second}[to == second], to) // asked by a portctl of before
			t.Logf("the %v release takes over within %v", to, time.Since(began).Round(time.Millisecond))
			s.runs(to, to)
			s.same(all)
			s.serves()
			all = s.change(first, second)
			s.seen(all)
			// What the keeper was told by one, it starts again as the other.
			s.kill()
			s.runs(to, to)
			s.same(all)
			s.serves()
			s.content()
		}
		select {
		case <-session.Done():
			t.Errorf("the session has ended: %v", session.Err())
		default:
		}
		if err := session.End(); err != nil {
			t.Error(err)
		}
		s.finish()
	})
}

// One of the processes that take part in an upgrade or a roll-back is killed at some moment of it: old daemon, new one, the one that proves
// itself or a holder. Whichever release goes on, it has everything.
func TestKilledWhileUpgraded(t *testing.T) {
	rounds := 8
	if os.Getenv("PORTD_LONG") != "" {
		rounds = 40
	}
	directions(t, func(t *testing.T, first, second *release) {
		s := open(t)
		s.install(first)
		s.start()
		s.furnish()
		s.populate(first, second)
		all := s.change(first, second)
		took := 300 * time.Millisecond
		killed := map[string]int{}
		for range rounds {
			to := second
			if is(s.daemon(0), second) {
				to = first
			}
			upgrade := s.command(first, "portctl", "upgrade", "--binary", to.portd())
			began := time.Now()
			if err := upgrade.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(rand.N(took)) // the moment
			some := descendants(s.cmd.Process.Pid)
			victim := some[rand.IntN(len(some))]
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", victim))
			_ = unix.Kill(victim, unix.SIGKILL) // it may have ended
			outcome := strings.TrimSpace(string(comm)) + ", not upgraded"
			if upgrade.Wait() == nil {
				outcome = strings.TrimSpace(string(comm)) + ", upgraded"
				took = time.Since(began)
			}
			killed[outcome]++
			s.wait("one daemon", func() bool { return s.alone() })
			s.same(all)
			s.serves()
			s.content()
			all = s.change(first, second)
		}
		t.Logf("killed: %v", killed)
		s.finish()
	})
}
