package starvation_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The keeper is stopped, and takes nothing that it is given: it is replaced, and portd goes on meanwhile.
func TestStoppedKeeper(t *testing.T) {
	t.Parallel()
	p := prepare(t).begin(t)
	c := p.Client(t)
	addr := listens(t, c, "web", nil)
	p.serve(t, "web", "first")
	p.keeperEnds = true
	stop(t, p.Process.Pid)
	t.Cleanup(func() { // whichever keeper there is now
		_ = unix.Kill(p.Process.Pid, unix.SIGCONT)
		_ = unix.Kill(p.pid, unix.SIGTERM)
		eventually(t, "portd stops", func() bool { return errors.Is(unix.Kill(p.pid, 0), unix.ESRCH) })
	})
	longest := time.Duration(0)
	for i := range 400 {
		began := time.Now()
		if _, err := reserve(within(t, 10*time.Second), c, fmt.Sprintf("r%d", i)); err != nil {
			t.Fatalf("reservation %d: %v", i+1, err)
		}
		longest = max(longest, time.Since(began))
	}
	t.Logf("a reservation took %v at most", longest)
	wantAnswers(t, visit(t, addr, 20))
	p.rests(t)
	if st := p.status(t, c); int(st.GetPid()) != p.pid {
		t.Error("portd has been started again")
	}
}
