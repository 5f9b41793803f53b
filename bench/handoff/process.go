package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A process is a server that runs until stop.
type process struct {
	cmd  *exec.Cmd
	said string // its first line
	in   io.Closer
}

// spawn starts a process that ends with this one at the latest.
func spawn(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &process{cmd: cmd, in: in}, nil
}

// start waits for the first line that the process prints.
func start(ctx context.Context, env []string, name string, args ...string) (*process, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p, err := spawn(cmd)
	if err != nil {
		return nil, err
	}
	if p.said, err = bufio.NewReader(out).ReadString('\n'); err != nil {
		p.stop()
		return nil, fmt.Errorf("%s %v does not start: %w", name, args, err)
	}
	return p, nil
}

func (p *process) stop() {
	_ = p.in.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// port is what a server that is ready says it listens on.
func (p *process) port() (port int, err error) {
	if _, err = fmt.Sscanf(p.said, "ready %d", &port); err != nil {
		err = fmt.Errorf("a server says %q", p.said)
	}
	return port, err
}

// cpu is the processor time that the process has used, also in threads that have ended: every process has a clock of it
// (clock_getcpuclockid(3)).
func (p *process) cpu() time.Duration {
	var t unix.Timespec
	const scheduler = 2
	if err := unix.ClockGettime(int32(^p.cmd.Process.Pid<<3|scheduler), &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// loopbackUp sets the loopback device of a new network namespace up (netdevice(7)).
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("set the loopback device up: %w", err)
	}
	return nil
}
