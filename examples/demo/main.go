// Demo shows the first minute with portd, and checks each thing that it says.
//
// It starts a portd of its own in a temporary place, so that no other one is touched, and takes portd, portctl and http-worker from
// $PATH: make demo builds them and sets it. It exits with 1 and the step's name when something was not as told.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// The processes of the demo die with the thread that started them (PR_SET_PDEATHSIG in prctl(2)): it must be the one that lasts
// as long as the demo does.
func init() { runtime.LockOSThread() }

func main() {
	// Without SIGPIPE here, make demo | head would end us before we have cleaned up.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

// patience is for the whole demo, which takes a second or two.
const patience = time.Minute

func run(ctx context.Context, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	dir, err := place()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s := &story{out: out, dir: dir}
	defer s.end()
	// portctl and the workers look here before anywhere else.
	if err := os.Setenv("PORTD_SOCKET", s.socket()); err != nil {
		return err
	}
	for _, step := range s.steps() {
		s.say("%s", step.title)
		if err := step.act(ctx); err != nil {
			if ctx.Err() != nil {
				err = fmt.Errorf("interrupted: %w", context.Cause(ctx))
			}
			return fmt.Errorf("%q was not as told: %w%s", step.title, err, s.logs())
		}
		s.say("")
	}
	s.say("Your turn:")
	s.say("  ./bin/portd &")
	s.say("  ./bin/portctl reserve tcp any --name web")
	s.say("  go run ./examples/http-worker web")
	return nil
}

// longest is what a socket's path may have: sun_path in unix(7) less the zero at its end.
const longest = len(syscall.RawSockaddrUnix{}.Path) - 1

// place makes a directory that only we may enter and whose path is short enough for sockets. The caller removes it.
func place() (string, error) {
	var failed []error
	for _, parent := range []string{os.TempDir(), "/tmp", "/var/tmp", "/dev/shm"} {
		dir, err := os.MkdirTemp(parent, "portd-demo-")
		if err == nil && len(filepath.Join(dir, "handoff.sock")) > longest {
			err = errors.Join(fmt.Errorf("%s is too long for the path of a socket", dir), os.Remove(dir))
		}
		if err == nil {
			return dir, nil
		}
		failed = append(failed, err)
	}
	return "", errors.Join(failed...)
}
