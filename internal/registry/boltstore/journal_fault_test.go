package boltstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/storetest"
)

// manually leaves it to the test when to put into the file what is in the journal.
var manually = Options{Delay: time.Hour, Journal: 4 * firstSize}

// sized is a change that takes about so many bytes of the journal.
func sizedChange(at registry.Revision, bytes int) []registry.Change {
	r := &registry.Reservation{ID: fmt.Sprintf("rsv_%d", at%7), Revision: at + 1, Name: strings.Repeat("x", bytes)}
	return []registry.Change{{Revision: at + 1, Time: time.Unix(int64(at), 0).UTC(), Put: []registry.Record{r}}}
}

// A life is what a store does from being opened to being closed, with each way to commit: into the journal, which begins, fills,
// grows and goes round, past it, and into the file.
func life(s *Store, commit func(bytes int) error) error {
	for _, do := range []func() error{
		func() error { return commit(10) },
		func() error { return commit(10_000) },
		s.checkpoint,
		func() error { return commit(90_000) },
		func() error { return commit(90_000) },
		func() error { return commit(90_000) }, // which there is no room for
		func() error { return commit(10) },
		s.checkpoint, // and the journal grows
		func() error { return commit(300_000) },
		func() error { return commit(10) },
		func() error { return commit(700_000) }, // too large for it
		func() error { return commit(10) },
		s.Close,
	} {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// Each system call of a life fails, alone or with all that follow for a while. Who was told that a commit failed does not find it in
// the store, now or when portd has died and come back, and all else is there.
func TestJournalFails(t *testing.T) {
	f := faults(t)
	if f == nil {
		return
	}
	// Every so many calls, from a random one on; at length each of them.
	for lasting, n := range map[bool]int{false: 4, true: 6} {
		t.Run(fmt.Sprintf("lasting=%t", lasting), func(t *testing.T) {
			step := int64(every(n))
			first := 1 + rand.Int64N(step)
			t.Logf("from call %d on each %dth", first, step)
			failed, doubtful, closed := 0, 0, 0
			ended := false
			for nth := first; !ended && !t.Failed(); nth += step {
				dir := t.TempDir()
				x := &ill{t: t}
				var err error
				if x.s, err = Open(filepath.Join(dir, "portd.db"), manually); err != nil {
					t.Fatal(err)
				}
				settled(t, x.s)
				f.fail(fault{anyCall, nth}, lasting)
				var last, answered []registry.Change
				err = life(x.s, func(bytes int) error {
					last = sizedChange(x.m.Revision, bytes)
					err := x.s.Commit(t.Context(), x.m.Revision, last)
					if err == nil {
						x.m.Apply(last...)
						answered, last = append(answered, last...), nil
					}
					return err
				})
				ended = f.errno() == 0
				if err == nil {
					// It was not needed: the journal did not grow, say.
					f.stop()
					x.s = mustOpen(t, filepath.Join(dir, "portd.db"))
				} else {
					if why := err.Error(); !strings.Contains(why, unix.EIO.Error()) && !strings.Contains(why, unix.ENOSPC.Error()) {
						t.Errorf("call %d failed: %v", nth, err)
					}
					failed++
				}
				select {
				case <-x.s.stopped: // it was Close that failed
					f.stop()
					closed++
					x.s = mustOpen(t, filepath.Join(dir, "portd.db"))
				default:
				}
				doubt := last != nil && (x.s.undo != nil || x.s.half != nil || x.s.journal != nil && x.s.journal.doubt != 0)
				if doubt {
					doubtful++
					if _, err := x.s.Load(t.Context()); x.s.half == nil && !errors.Is(err, registry.ErrUnavailable) {
						t.Errorf("call %d: load while a failed commit may be on the disk: %v", nth, err)
					}
				}
				// portd dies now, and comes back.
				f.stop()
				again := reborn(t, dir)
				st, err := again.Load(t.Context())
				if err != nil {
					t.Fatalf("call %d: %v", nth, err)
				}
				var want storetest.Model
				for _, c := range answered {
					want.Apply(c)
				}
				if doubt && st.Revision != want.Revision {
					want.Apply(last...)
				}
				want.Check(t, again)
				if err := again.Close(); err != nil {
					t.Errorf("call %d: %v", nth, err)
				}
				// It does not die, and goes on.
				for _, bytes := range []int{10, 90_000, 700_000, 90_000, 10} {
					changes := sizedChange(x.m.Revision, bytes)
					if err := x.s.Commit(t.Context(), x.m.Revision, changes); err != nil {
						t.Fatalf("call %d: the disk is well again: %v", nth, err)
					}
					x.m.Apply(changes...)
				}
				x.m.Check(t, x.s)
				if err := x.s.Close(); err != nil {
					t.Errorf("call %d: %v", nth, err)
				}
				x.s = mustOpen(t, filepath.Join(dir, "portd.db"))
				x.m.Check(t, x.s)
				if err := x.s.Close(); err != nil {
					t.Errorf("call %d: %v", nth, err)
				}
			}
			t.Logf("%d calls failed; %d times what failed may have been on the disk, %d times it was Close", failed, doubtful, closed)
			if failed < int(40/step) || !lasting && doubtful > 0 || step == 1 && (closed < 2 || lasting && doubtful == 0) {
				t.Error("that cannot be")
			}
		})
	}
}

// reborn opens what a store in dir has on the disk now, in another place.
func reborn(t *testing.T, dir string) *Store {
	t.Helper()
	to := t.TempDir()
	for _, name := range list(t, dir) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(filepath.Join(to, "portd.db"), manually)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const (
	envLifePath = "BOLTSTORE_TEST_LIFE"
	envLifeKill = "BOLTSTORE_TEST_KILL_AT"
)

// liveAndDie is a life of a new store at path, in which the process is killed at the nth call. It
// prints the revisions that were answered.
func liveAndDie(path, nth string) error {
	n, err := strconv.ParseInt(nth, 10, 64)
	if err != nil {
		return err
	}
	f := &faulty{kill: true}
	if f.listener, err = filter(); err != nil {
		return err
	}
	go f.serve()
	f.fail(fault{anyCall, n}, false)
	s, err := Open(path, manually)
	if err != nil {
		return err
	}
	at := registry.Revision(0)
	return life(s, func(bytes int) error {
		if err := s.Commit(noContext, at, sizedChange(at, bytes)); err != nil {
			return err
		}
		at++
		fmt.Println(at)
		return nil
	})
}

// The process is killed before each system call of a life. What was answered is there then, and at most the one commit beyond that was
// being written.
func TestJournalKilledAtEveryCall(t *testing.T) {
	// Every so many calls, from a random one on; at length each of them.
	t.Parallel()
	step := every(3)
	ended, killed, unanswered, old := false, 0, 0, 0
	for nth := 1 + rand.IntN(step); !ended && !t.Failed(); nth += step {
		path := filepath.Join(t.TempDir(), "portd.db")
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), envLifePath+"="+path, envLifeKill+"="+strconv.Itoa(nth))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if strings.Contains(stderr.String(), "operation not permitted") {
			t.Skipf("needs seccomp(2) with user notification: %s", &stderr)
		}
		if ended = err == nil; !ended && err.Error() != "signal: killed" {
			t.Fatalf("it ended by itself: %v\n%s", err, &stderr)
		}
		if !ended {
			killed++
		}
		var m storetest.Model
		for range strings.Fields(string(out)) {
			m.Apply(sizedChange(m.Revision, sizeAt(m.Revision))...)
		}
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) && m.Revision == 0 {
			continue // before there was a store
		}
		if refusedByOlder(t, path) {
			old++
		}
		s := mustOpen(t, path)
		st, err := s.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.Revision == m.Revision+1 && !ended {
			m.Apply(sizedChange(m.Revision, sizeAt(m.Revision))...)
			unanswered++
		}
		m.Check(t, s)
		changes := sizedChange(m.Revision, 10)
		if err := s.Commit(t.Context(), m.Revision, changes); err != nil {
			t.Fatal(err)
		}
		m.Apply(changes...)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = mustOpen(t, path)
		m.Check(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if refusedByOlder(t, path) {
			t.Error("an older portd does not open what was closed")
		}
	}
	t.Logf("killed at %d calls; %d times there was a commit that was not answered; %d times an older portd would refuse the file", killed, unanswered, old)
	if killed < 60/step || step <= 3 && (unanswered == 0 || old == 0) {
		t.Error("that proves nothing")
	}
}

// sizeAt is what life commits at a revision.
func sizeAt(at registry.Revision) int {
	sizes := []int{10, 10_000, 90_000, 90_000, 90_000, 10, 300_000, 10, 700_000, 10}
	return sizes[int(at)%len(sizes)]
}

// refusedByOlder says whether a portd would refuse the file that knows no journals.
func refusedByOlder(t *testing.T, path string) bool {
	t.Helper()
	err := inspect(path, Options{Timeout: time.Second}, journaled-1)
	if err != nil && !errors.As(err, new(*SchemaError)) {
		t.Fatal(err)
	}
	return err != nil
}

// What a portd that died has left may be in memory only. Open gives it to be read at once; nothing is added to it, and nobody is told that it is
// on the disk, until it is.
func TestSyncFailsAtOpen(t *testing.T) {
	f := faults(t)
	if f == nil {
		return
	}
	for _, call := range []int32{unix.SYS_PWRITE64, unix.SYS_FDATASYNC} {
		dir := t.TempDir()
		x := &ill{t: t, s: mustOpen(t, filepath.Join(dir, "portd.db"))}
		changes := sizedChange(0, 100)
		if err := x.s.Commit(t.Context(), 0, changes); err != nil {
			t.Fatal(err)
		}
		x.m.Apply(changes...)
		if err := x.s.die(); err != nil {
			t.Fatal(err)
		}
		f.fail(fault{call, 1}, true)
		s, err := Open(filepath.Join(dir, "portd.db"), manually)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Synced(); !errors.Is(err, registry.ErrUnavailable) || !errors.Is(err, faultErrno[call]) {
			t.Errorf("call %d fails: synced: %v", call, err)
		}
		x.m.Check(t, s)
		if err := s.Commit(t.Context(), 1, sizedChange(1, 100)); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("call %d fails: a commit on what is not synced: %v", call, err)
		}
		f.stop()
		changes = sizedChange(1, 100)
		if err := s.Commit(t.Context(), 1, changes); err != nil {
			t.Errorf("the disk is well again: %v", err)
		}
		x.m.Apply(changes...)
		x.m.Check(t, s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		x.m.Check(t, mustOpen(t, filepath.Join(dir, "portd.db")))
	}
}
