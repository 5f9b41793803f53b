package keeper_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func rounds(short, long int) int {
	if os.Getenv("PORTD_LONG") != "" {
		return long
	}
	return short
}

func descriptors(t *testing.T, pid int) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// TestKilled kills the daemon again and again, at random moments. No client is refused, and everything that was put is there.
func TestKilled(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.ask(t, "put s. 40")
	want := p.ask(t, "items")
	p.ask(t, "settle")
	before := descriptors(t, p.Process.Pid)
	for range rounds(25, 300) {
		pid := p.daemonPID(t)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if now := p.daemonPID(t); now == pid {
			t.Error("a dead daemon answers")
		}
		if rand.IntN(3) > 0 { // else it dies as soon as it answers
			if got := p.ask(t, "items"); got != want {
				t.Fatalf("the daemon has %s, want %s", got, want)
			}
		}
	}
	if got := p.ask(t, "items"); got != want {
		t.Errorf("the daemon has %s, want %s", got, want)
	}
	if after := descriptors(t, p.Process.Pid); after != before {
		t.Errorf("the keeper has %d descriptors, had %d", after, before)
	}
	if log := p.log.String(); !strings.Contains(log, "signal 9 (killed)") {
		t.Error("the log does not say what the daemon died of")
	}
}

// TestBothKilled kills the daemon and the keeper in turns.
func TestBothKilled(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.ask(t, "put s. 300") // more than there is room for in a socket
	want := p.ask(t, "items")
	for i := range rounds(20, 300) {
		var victim int
		if i%2 == 0 {
			victim = p.theKeeper(t)
		} else {
			victim = p.daemonPID(t)
		}
		if err := unix.Kill(victim, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "everything is kept", func() bool { return p.ask(t, "kept") == "true" && p.daemonPID(t) != victim && p.theKeeper(t) != victim })
		p.ask(t, "settle")
		if got := p.ask(t, "items"); got != want {
			t.Fatalf("after %d rounds the daemon has %s, want %s", i, got, want)
		}
	}
	if n := len(p.all(t)); n != 2 {
		t.Errorf("%d processes are there", n)
	}
	// The last keeper is nobody's child. It goes when the daemon does.
	if err := unix.Kill(p.theKeeper(t), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all have gone", func() bool { return len(p.all(t)) == 0 })
}

// theKeeper waits for there to be one.
func (p *portd) theKeeper(t *testing.T) int {
	t.Helper()
	var all []int
	eventually(t, "there is one keeper", func() bool {
		all = p.keepers(t)
		return len(all) == 1
	})
	return all[0]
}

// Memory: what a keeper takes with thousands of descriptors, after many have come and gone.
func TestMemory(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.ask(t, "put s. 3000")
	for range rounds(1, 20) {
		p.ask(t, "churn 20000")
	}
	if n := descriptors(t, p.Process.Pid); n < 3000 || n > 3050 {
		t.Errorf("the keeper has %d descriptors", n)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("RssAnon is %d kB", kb)
			if kb > 4096 && !raceEnabled {
				t.Errorf("the keeper takes %d kB", kb)
			}
		}
	}
}
