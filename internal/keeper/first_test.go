package keeper_test

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A daemon that is killed before it was ever ready is started again, and not for ever: whoever starts portd is to hear that it does not run.
func TestKilledBeforeItIsReady(t *testing.T) {
	t.Parallel()
	t.Run("a few times", func(t *testing.T) {
		t.Parallel()
		p := prepare(t)
		p.write(t, "dies", "4")
		p.begin(t)
		p.daemonPID(t)
	})
	t.Run("each time", func(t *testing.T) {
		t.Parallel()
		p := prepare(t)
		p.write(t, "dies", "1000")
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		if code := p.ends(t); code != 128+9 {
			t.Errorf("exit code %d", code)
		}
		if log := p.log.String(); strings.Count(log, "it is started again") != 4 || !strings.Contains(log, "portd ends") {
			t.Error("the log does not say how often it was tried, and that it is over")
		}
	})
	t.Run("when one has been ready", func(t *testing.T) {
		t.Parallel()
		p := start(t)
		p.write(t, "dies", "7")
		pid := p.daemonPID(t)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "there is another daemon", func() bool { return p.daemonPID(t) != pid })
	})
}

// A daemon that dies with something unread has been heard to the end: the kernel says ECONNRESET before it gives what is left.
func TestDiesWithSomethingUnread(t *testing.T) {
	t.Parallel()
	p := start(t)
	p.ask(t, "put s. 5")
	p.ask(t, "settle")
	p.write(t, "blind", "")
	if err := unix.Kill(p.daemonPID(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the keeper is stopped, and the daemon dead", func() bool { return stopped(p.Process.Pid) && len(p.all(t)) == 1 })
	if err := p.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if got := p.ask(t, "items"); !strings.Contains(got, "x.blind=") {
		t.Errorf("the daemon has %s, and not what the one before it has put", got)
	}
}

// A keeper that takes another one's place logs as that did.
func TestReplacementLogsAlike(t *testing.T) {
	t.Parallel()
	p := start(t) // at debug
	first := p.theKeeper(t)
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "there is another keeper", func() bool { return p.ask(t, "kept") == "true" && p.theKeeper(t) != first })
	p.ask(t, "succeed")
	eventually(t, "the new keeper says it", func() bool { return strings.Contains(p.log.String(), "another process is the daemon") })
}
