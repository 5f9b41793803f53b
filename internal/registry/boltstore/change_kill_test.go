package boltstore

import (
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

const envChangePath = "BOLTSTORE_TEST_CHANGE"

// changeAndDie restores the backup beside path, if there is one, opens the store, which takes it or migrates what is there, and copies
// that. The process is killed at the nth call.
func changeAndDie(path, nth string) error {
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
	switch in, err := os.Open(path + ".in"); {
	case err == nil:
		if _, _, err := Restore(noContext, path, in); err != nil {
			return err
		}
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	s, err := Open(path, manually)
	if err != nil {
		return err
	}
	if _, err := s.copyNow(noContext); err != nil {
		return err
	}
	return s.Close()
}

// The process is killed before each system call of a restore, of a migration, and of the copies that go with them. The store opens then and
// has everything, the one from before or the one after.
func TestChangeKilledAtEveryCall(t *testing.T) {
	step := 3
	if os.Getenv("PORTD_LONG") != "" {
		step = 1
	}
	dir := t.TempDir()
	m, backup, _ := backupOf(t, filepath.Join(dir, "portd.db"))
	file, err := os.ReadFile(filepath.Join(dir, "portd.db"))
	if err != nil {
		t.Fatal(err)
	}
	old := unpack(t, filepath.Join("testdata", "schema2.db.gz"))
	for name, tt := range map[string]struct {
		make  func(path string)
		check func(t *testing.T, s *Store)
	}{
		"restore": {
			func(path string) { write(t, path, file); write(t, path+".in", backup) },
			func(t *testing.T, s *Store) { m.Check(t, s) },
		},
		"migration": {
			func(path string) { write(t, path, old) },
			func(t *testing.T, s *Store) {
				if st, err := s.Load(t.Context()); err != nil || len(st.Reservations) != 1 || len(st.Services) != 1 {
					t.Errorf("%+v (%v)", st, err)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			killed := 0
			for nth, ended := 1+rand.IntN(step), false; !ended && !t.Failed(); nth += step {
				path := filepath.Join(t.TempDir(), "portd.db")
				tt.make(path)
				cmd := exec.Command("/proc/self/exe")
				cmd.Env = append(os.Environ(), envChangePath+"="+path, envLifeKill+"="+strconv.Itoa(nth))
				cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
				out, err := cmd.CombinedOutput()
				if strings.Contains(string(out), "operation not permitted") {
					t.Skipf("needs seccomp(2) with user notification: %s", out)
				}
				if ended = err == nil; !ended && err.Error() != "signal: killed" {
					t.Fatalf("call %d: it ended by itself: %v\n%s", nth, err, out)
				}
				if !ended {
					killed++
				}
				for range 2 {
					s := mustOpen(t, path)
					tt.check(t, s)
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
				}
				if copies, err := Copies(path); err != nil || len(copies) > 0 {
					if _, _, err := NewestCopy(t.Context(), path); err != nil {
						t.Errorf("call %d: %v", nth, err)
					}
				}
			}
			t.Logf("killed at %d calls", killed)
			if killed < 20/step {
				t.Error("that proves nothing")
			}
		})
	}
}
