package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// run starts this program again in new namespaces and exits as it does; it returns only if the program could not be started.
func run(attr *syscall.SysProcAttr, here string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	// The kernel sends Pdeathsig when the thread that forked is gone, so this goroutine keeps its thread to the end.
	runtime.LockOSThread()
	attr.Pdeathsig = syscall.SIGKILL
	child := &exec.Cmd{
		Path: exe, Args: os.Args, Env: append(os.Environ(), envOuter+"="+here),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, SysProcAttr: attr,
	}

	// Caught from before the start, so that none falls between. What a parent chose to ignore (nohup) stays ignored.
	signals := make(chan os.Signal, 16)
	for _, sig := range []os.Signal{
		syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2,
	} {
		if !signal.Ignored(sig) {
			signal.Notify(signals, sig)
		}
	}
	if err := child.Start(); err != nil {
		signal.Reset()
		runtime.UnlockOSThread()
		return err
	}
	go func() {
		for sig := range signals {
			_ = child.Process.Signal(sig) // fails only when it has ended, which Wait reports
		}
	}()

	var exit *exec.ExitError
	if err := child.Wait(); err != nil && !errors.As(err, &exit) {
		fmt.Fprintf(os.Stderr, "nstest: wait for the tests: %v\n", err)
		os.Exit(1)
	}
	status := child.ProcessState.Sys().(syscall.WaitStatus)
	if !status.Signaled() {
		os.Exit(status.ExitStatus())
	}
	// To the caller it should look as if no process stood in between. Sent to this thread, the signal arrives before Tgkill returns.
	signal.Reset()
	_ = unix.Tgkill(os.Getpid(), unix.Gettid(), status.Signal())
	os.Exit(128 + int(status.Signal()))
	return nil
}
