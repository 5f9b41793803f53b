package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// startItself runs a program that binds its port itself.
func (o *occupant) startItself(path string, argv []string, at []place) error {
	args, port, err := substitute(argv, at)
	if err != nil {
		return err
	}
	cmd := &exec.Cmd{Path: path, Args: args, Env: append(withoutListen(os.Environ()), fmt.Sprintf("PORT=%d", port))}
	p, err := o.start(cmd)
	if err != nil {
		return notRun(argv[0], err)
	}
	return p.wait()
}

// substitute replaces {port} and {addr} in a program's arguments by what it is to bind: one port, on one address or all.
func substitute(argv []string, at []place) (out []string, port uint32, err error) {
	var addrs []string
	for _, p := range at {
		for _, a := range p.endpoints {
			e := a.GetEndpoint()
			first, last := e.GetPorts().GetFirst(), e.GetPorts().GetLast()
			if port != 0 && port != first || first != last {
				return nil, 0, usagef("--record-only tells the program one port, and %s is more", endpointsText(p.res))
			}
			port = first
			if !slices.Contains(addrs, e.GetAddress()) {
				addrs = append(addrs, e.GetAddress())
			}
		}
	}
	for _, arg := range argv {
		if strings.Contains(arg, "{addr}") && len(addrs) != 1 {
			return nil, 0, usagef("{addr} is one address, and there are %s", strings.Join(addrs, ", "))
		}
		out = append(out, strings.NewReplacer("{port}", fmt.Sprint(port), "{addr}", strings.Join(addrs, ",")).Replace(arg))
	}
	return out, port, nil
}

// startWithSockets runs a program with the sockets of its reservations. The process that becomes the program attaches
// at the hand-off itself, as portctl, so that the attachment is the program's own: it ends when the program does,
// whatever becomes of this process, and of nothing else.
func (o *occupant) startWithSockets(path string, argv []string, at []place) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	defer write.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()

	args := []string{"portctl", programName, "--handoff", o.cl.HandoffPath()}
	seats := 0
	for _, p := range at {
		args = append(args, "--wish", p.ref, "--fdname", p.res.GetName())
		for _, a := range p.endpoints {
			seats += int(a.GetEndpoint().GetPorts().GetLast()-a.GetEndpoint().GetPorts().GetFirst()) + 1
		}
	}
	args = append(args, "--seats", strconv.Itoa(seats), "--", path)
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: append(args, argv...), Env: withoutListen(os.Environ())}
	// The sockets are to be descriptors 3 and up. Their seats are taken from the start, lest the runtime have something
	// of its own there.
	for range seats {
		cmd.ExtraFiles = append(cmd.ExtraFiles, null)
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, write)
	p, err := o.start(cmd)
	if err != nil {
		return fmt.Errorf("run portctl itself: %w", err)
	}
	_ = write.Close()
	if failed := readReport(read); failed != nil {
		_ = p.wait()
		return failed
	}
	return p.waitGiving(o, at)
}

// withoutListen is an environment without what was meant for portctl itself (sd_listen_fds(3)).
func withoutListen(env []string) (out []string) {
	for _, e := range env {
		if !strings.HasPrefix(e, "LISTEN_PID=") && !strings.HasPrefix(e, "LISTEN_FDS=") && !strings.HasPrefix(e, "LISTEN_FDNAMES=") {
			out = append(out, e)
		}
	}
	return out
}

// A report is what goes wrong in the process that is to become the program, on its way to the one that speaks.
type report struct {
	Text, Try string
	Code      int
}

func (r *report) Error() string { return r.Text }

// readReport waits until the program runs: then the pipe is closed by exec, with nothing in it.
func readReport(pipe io.Reader) error {
	text, err := io.ReadAll(pipe)
	if err != nil || len(text) == 0 {
		return err
	}
	r := &report{}
	if err := json.Unmarshal(text, r); err != nil {
		return err
	}
	return r
}

// notRun is the error of a program that could not be started, with a shell's exit code.
func notRun(name string, err error) error {
	code := exitNotExecutable
	if errors.Is(err, fs.ErrNotExist) {
		code = exitNoProgram
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
		if errno == unix.ENOENT {
			return &programError{fmt.Errorf("%s, or the interpreter it names: %w", name, err), code}
		}
	}
	return &programError{fmt.Errorf("%s: %w", name, err), code}
}
