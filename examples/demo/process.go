package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// command is a program with its arguments. It dies with us, and a ^C on the terminal is for us alone: we end it in our time.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// A process is a program that goes on in the background.
type process struct {
	cmd    *exec.Cmd
	ready  chan string   // the first line that said so
	exited chan struct{} // closed when err is there
	err    error

	mu  sync.Mutex
	log bytes.Buffer // all that it wrote
}

// start runs a program until a line of what it writes is one of readiness, and returns that line. Whether it gets there or not,
// a process that is returned must be killed.
func start(ctx context.Context, isReady func(line string) bool, name string, args ...string) (*process, string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, "", err
	}
	// It outlives ctx: whoever is interrupted still wants to end it by himself.
	p := &process{
		cmd: command(context.WithoutCancel(ctx), name, args...), ready: make(chan string, 1), exited: make(chan struct{}),
	}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	err = p.cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return nil, "", err
	}
	go p.follow(r, isReady)
	select {
	case line := <-p.ready:
		return p, line, nil
	case <-p.exited:
		return p, "", fmt.Errorf("%s ended at once: %v", name, p.cmd.ProcessState)
	case <-ctx.Done():
		return p, "", ctx.Err()
	}
}

// follow reads what the process writes, to its end, and closes r.
func (p *process) follow(r *os.File, isReady func(string) bool) {
	lines := bufio.NewScanner(r)
	for told := false; lines.Scan(); {
		line := lines.Text()
		p.mu.Lock()
		fmt.Fprintln(&p.log, line)
		p.mu.Unlock()
		if !told && isReady(line) {
			p.ready <- line
			told = true
		}
	}
	_ = r.Close()
	p.err = p.cmd.Wait()
	close(p.exited)
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// signal sends a signal; ErrProcessDone where there is nobody any more.
func (p *process) signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// freeze stops the process where it is, and returns when none of its threads runs any more: kill(2) does not wait for that.
func (p *process) freeze() error {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for {
		err := unix.Waitid(unix.P_PID, p.pid(), nil, unix.WSTOPPED, nil)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("waitid", err)
		}
	}
}

// stop asks the process to end, and says how it did.
func (p *process) stop() error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.exited:
		return p.err
	case <-time.After(10 * time.Second):
		return fmt.Errorf("process %d does not heed SIGTERM", p.pid())
	}
}

// kill ends the process by force, and returns when it is gone.
func (p *process) kill() {
	_ = syscall.Kill(-p.pid(), syscall.SIGKILL) // its group, for portd is two processes; ESRCH is fine
	<-p.exited
}

// said is what the process has written, indented, under a heading.
func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.log.Len() == 0 {
		return ""
	}
	text := strings.ReplaceAll(strings.TrimSpace(p.log.String()), "\n", "\n    ")
	return fmt.Sprintf("\n  %s %d wrote:\n    %s", p.cmd.Args[0], p.pid(), text)
}
