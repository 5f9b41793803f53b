package boltstore

import (
	"bufio"
	"context"
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

// In its environment the child of TestKilled finds the store that it is to write to, and the seed of what.
const (
	envKilledPath = "BOLTSTORE_TEST_PATH"
	envKilledSeed = "BOLTSTORE_TEST_SEED"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(envKilledPath); path != "" {
		if err := commitForever(path, os.Getenv(envKilledSeed)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if path := os.Getenv(envLifePath); path != "" {
		if err := liveAndDie(path, os.Getenv(envLifeKill)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if path := os.Getenv(envChangePath); path != "" {
		if err := changeAndDie(path, os.Getenv(envLifeKill)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(inMemory(m))
}

// inMemory runs the tests on a file system in memory, where there is one and PORTD_LONG does not ask for the disk: what is written and
// synced, and in which order, is the same there, and most of the time goes into waiting for a disk.
func inMemory(m *testing.M) int {
	var fs unix.Statfs_t
	if os.Getenv("PORTD_LONG") == "" && unix.Statfs("/dev/shm", &fs) == nil && fs.Type == unix.TMPFS_MAGIC && int64(fs.Bavail)*fs.Bsize > 1<<30 {
		if dir, err := os.MkdirTemp("/dev/shm", "boltstore-*"); err == nil {
			defer os.RemoveAll(dir)
			_ = os.Setenv("TMPDIR", dir)
		}
	}
	return m.Run()
}

// every is how many of the moments at which something can go wrong a test leaves out after each that it looks at, and one: each time
// others, since it begins with a random one. PORTD_LONG=1 looks at all. Under the race detector, which finds the same at any of them,
// it is three times as many.
func every(n int) int {
	switch {
	case os.Getenv("PORTD_LONG") != "":
		return 1
	case raceEnabled:
		return 3 * n
	}
	return n
}

var noContext = context.Background() // in a process that has no test

// commitForever goes on with the history that follows from the seed, and prints each revision once Commit has returned.
func commitForever(path, seed string) error {
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	ctx := noContext
	s, err := Open(path, Options{})
	if err != nil {
		return err
	}
	st, err := s.Load(ctx)
	if err != nil {
		return err
	}
	h := history{seed: n}
	for h.Revision < st.Revision {
		h.Apply(h.next()...)
	}
	for {
		changes := h.next()
		if err := s.Commit(ctx, h.Revision, changes); err != nil {
			return err
		}
		h.Apply(changes...)
		fmt.Println(h.Revision)
	}
}

// A history is the same in every process that has its seed.
type history struct {
	storetest.Model
	seed uint64
}

func (h *history) next() []registry.Change {
	return h.Next(rand.New(rand.NewPCG(h.seed, uint64(h.Revision))))
}

// Whenever the process is killed, what was answered is there, and of what was not at most the one batch that was being
// written, whole.
func TestKilled(t *testing.T) {
	t.Parallel()
	rounds := 12 / every(1)
	if os.Getenv("PORTD_LONG") != "" {
		rounds = 1000
	}
	h := history{seed: rand.Uint64()}
	t.Logf("seed %d", h.seed)
	path := filepath.Join(t.TempDir(), "portd.db")
	unanswered := 0
	for range rounds {
		answered := max(h.Revision, killOne(t, path, h.seed))
		for h.Revision < answered {
			h.Apply(h.next()...)
		}
		if h.Revision != answered {
			t.Fatalf("revision %d was answered, which no batch ends with", answered)
		}
		s := mustOpen(t, path)
		st, err := s.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.Revision != h.Revision {
			h.Apply(h.next()...)
			unanswered++
		}
		h.Check(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d processes killed, 0 of %d answered changes lost; %d times the store had a batch that was not answered", rounds, h.Revision, unanswered)
}

// killOne starts a process that commits, kills it at a random moment and returns the last revision that it had answered.
func killOne(t *testing.T, path string, seed uint64) registry.Revision {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envKilledPath+"="+path, envKilledSeed+"="+strconv.FormatUint(seed, 10))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { _ = cmd.Process.Kill() } // Wait finds what it did not kill
	// Some die while they start, and so while they make the store or open it.
	after := rand.IntN(25)
	if after == 0 {
		defer time.AfterFunc(rand.N(60*time.Millisecond), kill).Stop()
	}
	answered, n := registry.Revision(0), 0
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		r, err := strconv.ParseInt(lines.Text(), 10, 64)
		if err != nil {
			t.Errorf("it printed %q", lines.Text())
			kill()
		}
		answered = registry.Revision(r)
		if n++; n == after {
			defer time.AfterFunc(rand.N(3*time.Millisecond), kill).Stop()
		}
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Fatalf("it ended by itself: %v\n%s", err, stderr.String())
	}
	return answered
}
