package boltstore

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/storetest"
)

// Each system call of a commit that does without the journal fails, alone or with all that follow, until the disk is well again. Then the store goes on
// by itself, without the change that failed.
func TestWriteFails(t *testing.T) {
	f := faults(t)
	if f == nil {
		return
	}
	// More than there are, as their number varies, and surely the sync of the data and that of the meta page.
	plan := []fault{{unix.SYS_FDATASYNC, 1}, {unix.SYS_FDATASYNC, 2}}
	for nth := 1; nth <= 18; nth += every(1) {
		plan = append(plan, fault{anyCall, int64(nth)})
	}
	for name, lasting := range map[string]bool{"once": false, "lasting": true} {
		t.Run(name, func(t *testing.T) {
			x := newIll(t)
			failed, tookBack := 0, 0
			for n, at := range plan {
				f.fail(at, lasting)
				_, err := x.commit(2*n + 2)
				switch {
				case err == nil && f.errno() != 0:
					t.Fatalf("%+v failed, and the commit did not", at)
				case err == nil:
					f.stop()
					continue
				case !errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), f.errno().Error()):
					t.Fatalf("%+v failed: %v, want ErrUnavailable and %v", at, err, f.errno())
				}
				failed++
				if x.s.undo != nil {
					tookBack++
					if _, err := x.s.Load(t.Context()); !errors.Is(err, registry.ErrUnavailable) {
						t.Errorf("load while the failed commit is not taken back: %v", err)
					}
				}
				f.stop()
				x.m.Check(t, x.s)
				if _, err := x.commit(2*n + 3); err != nil {
					t.Fatalf("after %+v failed: %v", at, err)
				}
				x.m.Check(t, x.s)
			}
			t.Logf("%d commits failed; %d of them left it to be taken back later", failed, tookBack)
			if failed < 12/every(1) || lasting != (tookBack > 0) {
				t.Error("that cannot be")
			}
		})
	}
	t.Run("closed", func(t *testing.T) {
		x := newIll(t)
		for n, at := range plan {
			f.fail(at, true)
			changes, err := x.commit(n + 2)
			if err == nil {
				f.stop()
				continue
			}
			pending := x.s.undo != nil
			if at == (fault{unix.SYS_FDATASYNC, 2}) && !pending {
				t.Error("the meta page was not synced, and there is nothing to take back")
			}
			if err := x.s.Close(); (err != nil) != pending {
				t.Errorf("close: %v, and there is something to take back: %v", err, pending)
			}
			f.stop()
			// What could not be taken back may be there, but then whole.
			x.s = mustOpen(t, x.s.path)
			x.s.without = time.Now().Add(time.Hour)
			st, err := x.s.Load(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if pending && st.Revision != x.m.Revision {
				x.m.Apply(changes...)
			}
			x.m.Check(t, x.s)
		}
	})
}

// An ill is a store on a disk that fails, and what should be in it.
type ill struct {
	t *testing.T
	s *Store
	m storetest.Model
}

func newIll(t *testing.T) *ill { return newIllAt(t, filepath.Join(t.TempDir(), "portd.db")) }

// newIllAt makes one whose commits do without a journal.
func newIllAt(t *testing.T, path string) *ill {
	x := &ill{t: t, s: mustOpen(t, path)}
	x.s.without = time.Now().Add(time.Hour)
	t.Cleanup(func() {
		if err := x.s.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := x.commit(1); err != nil {
		t.Fatal(err)
	}
	return x
}

// commit makes the file grow, so that bbolt also has to map it again.
func (x *ill) commit(n int) ([]registry.Change, error) {
	changes := []registry.Change{storetest.Full(n), {Compact: x.m.Revision}}
	changes[0].Revision, changes[1].Revision = x.m.Revision+1, x.m.Revision+2
	changes[0].Put = append(changes[0].Put, &registry.Reservation{ID: "large", Name: "not yet"})
	changes[1].Put = []registry.Record{&registry.Reservation{ID: "large", Name: strings.Repeat("x", n<<12)}}
	err := x.s.Commit(x.t.Context(), x.m.Revision, changes)
	if err == nil {
		x.m.Apply(changes...)
	}
	return changes, err
}

// A disk that is really full.
func TestDiskFull(t *testing.T) {
	if os.Getenv(envFaulty) == "" {
		rerun(t, &exec.Cmd{Env: append(os.Environ(), envFaulty+"=1"), SysProcAttr: ownMounts()})
		return
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("needs to mount a small file system: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 400<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	x := newIllAt(t, filepath.Join(dir, "portd.db"))
	full := false
	for n := 1; n < 100 && !full; n++ {
		_, err := x.commit(n)
		if full = err != nil; full && (!errors.Is(err, registry.ErrUnavailable) || !errors.Is(err, unix.ENOSPC)) {
			t.Fatalf("the disk is full: %v", err)
		}
	}
	if !full {
		t.Fatal("the disk was never full")
	}
	x.m.Check(t, x.s)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if _, err := x.commit(10); err != nil {
		t.Errorf("there is room again: %v", err)
	}
	x.m.Check(t, x.s)
}

// ownMounts starts a command that can mount without anybody else seeing it.
func ownMounts() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if uid := os.Geteuid(); uid != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

// rerun runs the test once more in a process of its own, and passes, fails or skips as it does there.
func rerun(t *testing.T, cmd *exec.Cmd) {
	cmd.Path, cmd.Args = "/proc/self/exe", []string{os.Args[0], "-test.run=^" + t.Name() + "$", "-test.v"}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err != nil && !errors.As(err, &exit):
		t.Skipf("needs to start a process in namespaces of its own: %v", err)
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("%s", out)
	case !strings.Contains(string(out), "--- PASS: "+t.Name()+" "):
		t.Fatalf("it did not run:\n%s", out)
	}
	t.Logf("%s", out)
}
