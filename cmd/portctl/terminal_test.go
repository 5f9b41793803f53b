package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"syscall"

	"golang.org/x/sys/unix"
)

// terminalMain runs a command in the foreground of a terminal of its own: "terminal CMD ARGS…". When the command says
// that it is serving, ^C is typed; when it has got that, it is sent SIGTERM. What it said is printed.
func terminalMain() {
	master, slave, err := openTerminal()
	if err != nil {
		fail("terminal: %v", err)
	}
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		fail("terminal: %v", err)
	}
	_ = slave.Close()
	steps := []struct {
		when *regexp.Regexp
		do   func() error
	}{
		{regexp.MustCompile(`serving`), func() error { _, err := master.Write([]byte{3}); return err }},
		{regexp.MustCompile(`got interrupt`), func() error { return cmd.Process.Signal(unix.SIGTERM) }},
	}
	var said []byte
	buf := make([]byte, 4096)
	for {
		n, err := master.Read(buf)
		if err != nil {
			break // EIO: nobody has the terminal any more
		}
		said = append(said, buf[:n]...)
		for len(steps) > 0 && steps[0].when.Match(said) {
			if err := steps[0].do(); err != nil {
				fail("terminal: %v", err)
			}
			steps = steps[1:]
		}
	}
	fmt.Printf("%s", said)
	if err := cmd.Wait(); err != nil {
		fail("terminal: %v", err)
	}
}

// openTerminal makes a pseudoterminal (pts(4)).
func openTerminal() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, nil, err
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	return os.NewFile(uintptr(fd), "/dev/ptmx"), slave, err
}
