package main

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// A process is a program that runs in portctl's place, as far as one process can stand for another.
type process struct {
	cmd     *exec.Cmd
	signals chan os.Signal
	waited  chan struct{} // closed when the signals have nowhere to go
	done    chan struct{}
}

// passed are the signals that mean the program when they are sent to portctl.
var passed = []os.Signal{
	unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH, unix.SIGCONT, unix.SIGTSTP,
}

// start starts a program with portctl's own input and output.
func (o *occupant) start(cmd *exec.Cmd) (*process, error) {
	_ = o.out.Flush()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = o.stdin, o.stdout, o.stderr
	p := &process{cmd: cmd, signals: make(chan os.Signal, 16), waited: make(chan struct{}), done: make(chan struct{})}
	// Caught from before the start, so that none falls in between. What our parent chose to ignore (nohup) stays ignored.
	for _, sig := range passed {
		if !signal.Ignored(sig) {
			signal.Notify(p.signals, sig)
		}
	}
	if err := cmd.Start(); err != nil {
		signal.Stop(p.signals)
		return nil, err
	}
	go p.pass()
	return p, nil
}

// pass passes signals on until the program has ended.
func (p *process) pass() {
	defer close(p.done)
	for {
		select {
		case <-p.waited:
			return
		case sig := <-p.signals:
			// A terminal sends these to its whole foreground group, so the program has them already.
			switch sig {
			case unix.SIGINT, unix.SIGQUIT, unix.SIGWINCH, unix.SIGTSTP:
				if !inForeground() {
					_ = p.cmd.Process.Signal(sig) // fails only when it has ended
				}
			default:
				_ = p.cmd.Process.Signal(sig)
			}
			if sig == unix.SIGTSTP {
				_ = unix.Kill(os.Getpid(), unix.SIGSTOP) // as the program does, for the shell to see
			}
		}
	}
}

// wait waits for the program and returns its exit code as a status.
func (p *process) wait() error {
	err := p.cmd.Wait()
	close(p.waited)
	<-p.done
	signal.Stop(p.signals)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	ws := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case ws.Signaled():
		return status(128 + int(ws.Signal()))
	case ws.ExitStatus() != 0:
		return status(ws.ExitStatus())
	}
	return nil
}

// inForeground says whether a terminal's signals come to this process's group.
func inForeground() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return false // no terminal
	}
	defer tty.Close()
	raw, err := tty.SyscallConn()
	if err != nil {
		return false
	}
	group := 0
	_ = raw.Control(func(fd uintptr) { group, err = unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) })
	return err == nil && group == unix.Getpgrp()
}
