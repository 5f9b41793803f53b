package handoff_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
)

// portd is killed a number of instructions after it has accepted a connection, or sent some: from before that is written down until the
// message is closed and counted, and beyond. Nothing is lost, nothing comes twice.
func TestKilledAtInstruction(t *testing.T) {
	for _, strategy := range []registry.HandoffStrategy{0, registry.ClientAddress} {
		t.Run(fmt.Sprint(strategy), func(t *testing.T) {
			nstest.Descriptors(t)
			d := begun(t, &dynasty{options: registry.HandoffOptions{Strategy: strategy}, holders: true})
			var scribes []*scribe
			for i := range 2 {
				scribes = append(scribes, d.scribe(i, connections(dynastyID)))
			}
			a, stop := d.load(4)
			defer stop()
			kills := repeat(5, 300)
			after := map[string]int{}
			for range kills {
				d.skip = rand.IntN(handoff.MostAcceptors)
				last, err := d.killAfter(t, rand.IntN(1200))
				if err != nil {
					t.Fatal(err)
				}
				after[last]++
				d.begin()
			}
			stop()
			t.Logf("killed after %v", after)
			d.settled(t, a, scribes, d.reign.ask(t).Totals, kills)
		})
	}
}

// killAfter kills the portd that there is so many instructions after its engine has accepted a connection, or sent some, and says which
// system call was the last.
func (d *dynasty) killAfter(t *testing.T, steps int) (last string, err error) {
	t.Helper()
	err = d.traced(func(tid int) (err error) {
		last, err = instructions(tid, steps)
		return err
	})
	if errors.Is(err, errUntraced) {
		t.Skip(err)
	}
	return last, err
}

var errUntraced = errors.New("needs ptrace(2)")

// traced calls f with the engine's thread of the portd that there is, which stands still, and kills that portd.
func (d *dynasty) traced(f func(tid int) error) error {
	var tids []int
	for len(tids) == 0 {
		if _, err := io.WriteString(d.reign.in, "threads\n"); err != nil {
			return err
		}
		line, err := d.reign.out.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &tids)
		}
		if err != nil {
			return err
		}
	}
	tid := tids[0]
	runtime.LockOSThread() // who traces is a thread
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(tid); err != nil {
		return fmt.Errorf("%w: %w", errUntraced, err)
	}
	defer func() {
		d.kill()
	}()
	defer func() {
		_ = d.reign.Process.Kill()
		for { // its last stops, and its end
			var status unix.WaitStatus
			if _, err := unix.Wait4(tid, &status, unix.WALL, nil); err != nil && !errors.Is(err, unix.EINTR) || status.Exited() || status.Signaled() {
				return
			}
		}
	}()
	if err := unix.PtraceInterrupt(tid); err != nil {
		return err
	}
	if err := stopped(tid); err != nil {
		return err
	}
	return f(tid)
}

// instructions lets a thread go on until it has accepted a connection, or sent some, and for so many more instructions.
func instructions(tid, steps int) (last string, err error) {
	var regs unix.PtraceRegs
	from := uint64(unix.SYS_ACCEPT4)
	if rand.IntN(2) == 0 {
		from = unix.SYS_SENDMSG
	}
	if err := call(tid, &regs, from, func() bool { return true }, nil); err != nil {
		return "", err
	}
	last = calls[from]
	for range steps {
		if err := unix.PtraceSingleStep(tid); err != nil {
			return "", err
		}
		if err := stopped(tid); err != nil {
			return "", err
		}
		if err := unix.PtraceGetRegs(tid, &regs); err != nil {
			return "", err
		}
		if name, ok := calls[regs.Orig_rax]; ok && int64(regs.Orig_rax) >= 0 {
			last = name
		}
	}
	return last, nil
}

// call lets a thread go on until it has made a system call that succeeded, of those that are wanted. Before it is made there is a stop.
func call(tid int, regs *unix.PtraceRegs, number uint64, wanted func() bool, before func() error) error {
	entered := false
	for { // a stop before each system call, and one after it
		if err := unix.PtraceSyscall(tid, 0); err != nil {
			return err
		}
		if err := stopped(tid); err != nil {
			return err
		}
		if err := unix.PtraceGetRegs(tid, regs); err != nil {
			return err
		}
		entering := int64(regs.Rax) == -int64(unix.ENOSYS)
		if entered && !entering && regs.Orig_rax == number && int64(regs.Rax) >= 0 {
			return nil
		}
		entered = entering && regs.Orig_rax == number && wanted()
		if entered && before != nil {
			if err := before(); err != nil {
				return err
			}
		}
	}
}

var calls = map[uint64]string{
	unix.SYS_ACCEPT4: "accept", unix.SYS_SENDMSG: "sendmsg", unix.SYS_CLOSE: "close", unix.SYS_CLOSE_RANGE: "close", unix.SYS_POLL: "poll",
	unix.SYS_EPOLL_WAIT: "epoll", unix.SYS_EPOLL_PWAIT: "epoll", unix.SYS_FUTEX: "futex",
}

// stopped waits until a thread has stopped.
func stopped(tid int) error {
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(tid, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case status.Stopped():
			return nil
		default:
			return errors.New("the thread has ended")
		}
	}
}
