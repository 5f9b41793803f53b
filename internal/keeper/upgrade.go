package keeper

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// upgrade makes the keeper another program, in place: the same process, children and descriptors. What it knows goes along in a file in
// memory. Where the program cannot be started the keeper stays what it is.
func (k *keeper) upgrade(path string) {
	if k.feeding || k.fresh != nil {
		k.log.Warn("the keeper is not replaced while it gives or takes what it keeps; say so again")
		return
	}
	err := k.exec(path)
	k.log.Error("the keeper stays what it is", "binary", path, "err", err)
}

func (k *keeper) exec(path string) error {
	deaf(true)
	defer deaf(false)
	k.hear()
	fd, err := unix.MemfdCreate("keeper", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	state := os.NewFile(uintptr(fd), "state")
	defer state.Close()
	out := bufio.NewWriter(state)
	stays := k.write(out)
	if err := out.Flush(); err != nil {
		return err
	}
	if _, err := state.Seek(0, io.SeekStart); err != nil {
		return err
	}
	stays = append(stays, fd)
	for _, fd := range stays {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return err
		}
	}
	env := append(k.program.env[:len(k.program.env):len(k.program.env)], envRole+"=keeper", envState+"="+strconv.Itoa(fd))
	if socket, ok := os.LookupEnv("NOTIFY_SOCKET"); ok {
		env = append(env, "NOTIFY_SOCKET="+socket)
	}
	err = syscall.Exec(path, k.program.args, env)
	for _, fd := range stays {
		unix.CloseOnExec(fd)
	}
	return err
}

// deaf has the signals that the keeper hears wait in the kernel, also over execve(2), in which only the calling thread goes on: the main
// thread, which runs all of the keeper and starts its children, who inherit what waits or does not.
func deaf(is bool) {
	how := unix.SIG_UNBLOCK
	if is {
		how = unix.SIG_BLOCK
	}
	var set unix.Sigset_t
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR2} {
		set.Val[0] |= 1 << (s - 1)
	}
	_ = unix.PthreadSigmask(how, &set, nil)
}

// write writes what the keeper knows, a line each, and returns the descriptors that are in it.
func (k *keeper) write(w io.Writer) []int {
	var fds []int
	line := func(what, value string, fd int) {
		fmt.Fprintln(w, what, strconv.Quote(value), fd)
		if fd >= 0 {
			fds = append(fds, fd)
		}
	}
	for name, fd := range k.items {
		line("item", name, fd)
	}
	line("conn", "", k.conn)
	line("main", strconv.Itoa(k.main.pid), k.main.pidfd)
	line("predecessor", strconv.Itoa(k.predecessor.pid), k.predecessor.pidfd)
	line("successor", strconv.Itoa(k.successor.pid), k.successor.pidfd)
	line("image", strconv.Itoa(k.program.imageOf), k.program.image)
	line("path", k.program.path, -1)
	line("oom-score", k.program.oomScore, -1)
	if k.ready {
		line("ready", "", -1)
	}
	if k.asked != 0 {
		line("asked", strconv.Itoa(int(k.asked)), -1)
	}
	return fds
}

// takeUp reads what write wrote.
func (k *keeper) takeUp(text string) error {
	fd, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("%s: %w", envState, err)
	}
	unix.CloseOnExec(fd)
	state := os.NewFile(uintptr(fd), "state")
	defer state.Close()
	lines := bufio.NewScanner(state)
	for lines.Scan() {
		if err := k.readLine(lines.Text()); err != nil {
			return fmt.Errorf("%s: %q: %w", envState, lines.Text(), err)
		}
	}
	if k.main.pid == 0 || k.conn < 0 {
		return errors.New(envState + " names no daemon")
	}
	k.wasReady = true
	k.introduce()
	k.log.Info("the keeper is another program now", "kept", len(k.items))
	return lines.Err()
}

func (k *keeper) readLine(text string) error {
	what, rest, _ := strings.Cut(text, " ")
	quoted, err := strconv.QuotedPrefix(rest)
	if err != nil {
		return err
	}
	value, err := strconv.Unquote(quoted)
	if err != nil {
		return err
	}
	fd, err := strconv.Atoi(strings.TrimSpace(rest[len(quoted):]))
	if err != nil {
		return err
	}
	if fd >= 0 {
		unix.CloseOnExec(fd)
	}
	number, _ := strconv.Atoi(value) // where it is one
	switch what {
	case "item":
		k.items[value] = fd
	case "conn":
		k.conn = fd
	case "main":
		k.main = process{pid: number, pidfd: fd}
	case "predecessor":
		k.predecessor = process{pid: number, pidfd: fd}
	case "successor":
		k.successor = process{pid: number, pidfd: fd}
	case "image":
		k.program.image, k.program.imageOf = fd, number
	case "path":
		k.program.path = value
	case "oom-score":
		k.program.oomScore = value
	case "ready":
		k.ready, k.since = true, time.Now()
	case "asked":
		k.asked = unix.Signal(number)
	}
	return nil
}
