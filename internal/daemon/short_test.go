package daemon_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/daemon"
	"github.com/portd/portd/internal/nstest"
)

// A portd that cannot start for want of descriptors, at whatever point they run out, leaves none of them open.
func TestStartWithTooFewDescriptors(t *testing.T) {
	nstest.Need(t)
	nstest.Descriptors(t)
	dir := t.TempDir()
	cfg := daemon.Config{Socket: filepath.Join(dir, "s"), StateDir: filepath.Join(dir, "state"), Policy: filepath.Join(dir, "policy")}
	if err := os.WriteFile(cfg.Policy, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	lift := func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &was) }
	t.Cleanup(lift)
	open := func() int {
		lift()
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	before, failures := open(), 0
	for spare, started := 0, 0; spare < 40 && started < 5; spare++ { // five times: then it has what it needs
		ctx, stop := context.WithCancel(t.Context())
		cfg.Ready = stop
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(before + spare), Max: was.Max}); err != nil {
			t.Fatal(err)
		}
		err := daemon.Run(ctx, cfg)
		stop()
		if err != nil {
			failures++
			started = 0
		} else {
			started++
		}
		if n := open(); n > before {
			t.Fatalf("with %d to spare it said %v, and left %d open", spare, err, n-before)
		}
	}
	if failures < 5 {
		t.Errorf("it failed %d times only", failures)
	}
}
