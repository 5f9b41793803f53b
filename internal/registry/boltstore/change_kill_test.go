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
)

const envChangePath = "BOLTSTORE_TEST_CHANGE"

// changeAndDie is change in a process that is killed at the nth call.
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
	return change(path)
}

var errNotRestored = errors.New("not restored")

// change restores the backup beside path, if there is one, opens the store, which takes it or migrates what is there, and copies that.
// Where a file asks for it the store is then put back that was there before.
func change(path string) error {
	switch in, err := os.Open(path + ".in"); {
	case err == nil:
		defer in.Close()
		if _, _, err := Restore(noContext, path, in); err != nil {
			return fmt.Errorf("%w: %w", errNotRestored, err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	s, err := Open(path, manually)
	if err != nil {
		return err
	}
	if _, err := s.copyNow(noContext); err != nil {
		return errors.Join(err, s.Close())
	}
	if _, err := os.Lstat(path + ".back"); err != nil {
		return s.Close()
	}
	// It is killed with a journal of its own.
	if err := s.Commit(noContext, s.rev, sizedChange(s.rev, 10)); err != nil {
		return errors.Join(err, s.Close())
	}
	if err := s.die(); err != nil {
		return err
	}
	if err := PutBack(path); err != nil {
		return err
	}
	if s, err = Open(path, manually); err != nil {
		return err
	}
	return s.Close()
}

// whole makes sure that what has its name is whole, and that nothing else is left.
func whole(t *testing.T, path string) {
	t.Helper()
	copies, err := Copies(path)
	if err != nil {
		t.Error(err)
	}
	for _, file := range copies {
		if _, err := checkBackupFile(t.Context(), file); err != nil {
			t.Error(err)
		}
	}
	for _, name := range list(t, filepath.Dir(path)) {
		switch rest := strings.TrimPrefix(name, filepath.Base(path)); {
		case rest == ".schema2.bak":
			if err := inspect(path+rest, atOnce, 2); err != nil {
				t.Error(err)
			}
		case rest == "", rest == ".in", rest == ".back", strings.HasPrefix(rest, copyInfix),
			strings.HasPrefix(path+rest, BeforeRestore(path)):
		case path+rest == journalPath(path): // of a file that was closed: nothing is in it, and the next commit replaces it
		default:
			t.Errorf("%s is left behind", name)
		}
	}
}

// A changing is a store before it is changed, and what is to be there whatever happens.
type changing struct {
	make   func(path string)
	check  func(t *testing.T, s *Store)
	before string // the id of the store that is restored into
}

func changings(t *testing.T) map[string]changing {
	dir := t.TempDir()
	before := leave(t, filepath.Join(dir, "left.db"))
	after, backup, _ := backupOf(t, filepath.Join(dir, "other.db"))
	read := func(path string) []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	file, journal := read(filepath.Join(dir, "left.db")), read(journalPath(filepath.Join(dir, "left.db")))
	was := mustOpen(t, filepath.Join(dir, "left.db"))
	id := was.id
	if err := was.Close(); err != nil {
		t.Fatal(err)
	}
	restore := func(path string) {
		write(t, path, file)
		write(t, journalPath(path), journal)
		write(t, path+".in", backup)
	}
	either := func(t *testing.T, s *Store) {
		switch {
		case s.id == id:
			before.Check(t, s)
		case s.rev == after.Revision:
			after.Check(t, s)
		case s.rev != after.Revision+1: // with what was committed before it was put back
			t.Errorf("it is neither: %s at revision %d", s.id, s.rev)
		}
	}
	old := unpack(t, filepath.Join("testdata", "schema2.db.gz"))
	return map[string]changing{
		"restore":  {restore, either, id},
		"put back": {func(path string) { restore(path); write(t, path+".back", nil) }, either, id},
		"migration": {
			func(path string) { write(t, path, old) },
			func(t *testing.T, s *Store) {
				if st, err := s.Load(t.Context()); err != nil || len(st.Reservations) != 1 || len(st.Services) != 1 {
					t.Errorf("%+v (%v)", st, err)
				}
			},
			"",
		},
	}
}

// The process is killed before each system call of a restore, of one that is undone, of a migration, and of the copies that go with them.
// The store opens then and has everything, the one from before or the one after.
func TestChangeKilledAtEveryCall(t *testing.T) {
	t.Parallel()
	step := every(3)
	for name, tt := range changings(t) {
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
				if whole(t, path); t.Failed() {
					t.Logf("killed at call %d", nth)
				}
			}
			t.Logf("killed at %d calls", killed)
			if killed < 20/step {
				t.Error("that proves nothing")
			}
		})
	}
}

// Each system call of the same fails, alone or with all that follow: the store that is there when the disk is well again has everything.
func TestChangeFails(t *testing.T) {
	f := faults(t)
	if f == nil {
		return
	}
	step := int64(every(3))
	for name, tt := range changings(t) {
		for _, lasting := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, lasting=%t", name, lasting), func(t *testing.T) {
				failed := int64(0)
				for nth, ended := 1+rand.Int64N(step), false; !ended && !t.Failed(); nth += step {
					path := filepath.Join(t.TempDir(), "portd.db")
					tt.make(path)
					f.fail(fault{anyCall, nth}, lasting)
					err := change(path)
					ended = f.errno() == 0
					f.stop()
					if err == nil && !ended {
						continue // it was not needed
					}
					if !ended {
						failed++
					}
					for range 2 {
						s := mustOpen(t, path)
						tt.check(t, s)
						if errors.Is(err, errNotRestored) && !lasting && s.id != tt.before {
							t.Error("what it has not restored, as it said, is there")
						}
						if err := s.Close(); err != nil {
							t.Fatal(err)
						}
					}
					if whole(t, path); t.Failed() {
						t.Logf("call %d failed: %v", nth, err)
					}
				}
				t.Logf("%d failed", failed)
				if failed < 15/step {
					t.Error("that proves nothing")
				}
			})
		}
	}
}

// Writes that write less than they were asked to do no harm.
func TestChangeShortWrites(t *testing.T) {
	f := faults(t)
	if f == nil {
		return
	}
	f.shorten()
	for name, tt := range changings(t) {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "portd.db")
			tt.make(path)
			if err := change(path); err != nil {
				t.Fatal(err)
			}
			s := mustOpen(t, path)
			tt.check(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			whole(t, path)
		})
	}
}
