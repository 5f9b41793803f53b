package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/paths"
)

// unreached adds the next step to an error of there being no portd, or one that does not answer or is somebody else's.
func (c *ctl) unreached(err error, args []string) error {
	var e *client.Error
	switch {
	case errors.Is(err, client.ErrUntrusted) && errors.As(err, &e) && os.Geteuid() == 0:
		return try(err, c.asUser(e.Metadata["uid"], args))
	case !errors.Is(err, client.ErrNoDaemon):
		return err
	case !errors.Is(err, client.ErrNoAnswer) || !errors.As(err, &e):
		return try(err, "portd"+c.socketFlag()+" &")
	}
	pid, _ := strconv.Atoi(e.Metadata["pid"])
	switch {
	case pid == 0 && os.Geteuid() != 0:
		return try(err, "sudo portctl"+c.socketFlag()+" status   # which sees who it is")
	case pid == 0:
		return try(err, "ss -xlp   # says which process has the socket")
	case e.Metadata["state"] == "stopped":
		return try(err, asOwner(pid, fmt.Sprintf("kill -CONT %d", pid)))
	}
	return try(err, asOwner(pid, fmt.Sprintf("kill -9 %d", pid))+"   # "+c.afterKill(pid))
}

// asUser is the command line once more, as the user whose portd it is to ask.
func (c *ctl) asUser(uid string, args []string) string {
	line := "sudo -u '#" + uid + "' portctl"
	if c.socket == "" { // else it is among the arguments, and sudo takes it from the environment
		line += c.socketFlag()
	}
	for _, a := range args {
		line += " " + quote(a)
	}
	return line
}

// socketFlag is what portd or portctl is to be given where another socket than theirs was meant.
func (c *ctl) socketFlag() string {
	socket := cmp.Or(c.socket, os.Getenv(paths.SocketEnv))
	own, err := paths.Of(os.Geteuid(), os.Getenv)
	if socket == "" || err == nil && socket == own.Control() {
		return ""
	}
	return " --socket " + quote(socket)
}

// asOwner is a command that only a process's user and root may give.
func asOwner(pid int, command string) string {
	st, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err == nil && os.Geteuid() != 0 {
		if owner, ok := st.Sys().(*syscall.Stat_t); ok && int(owner.Uid) != os.Geteuid() {
			return "sudo " + command
		}
	}
	return command
}

// afterKill says who starts the daemon again.
func (c *ctl) afterKill(pid int) string {
	switch comm := parent(pid); comm {
	case "portd-keeper":
		return "its keeper has the ports, and starts it again"
	case "systemd":
		return "systemd starts it again"
	}
	return "and then portd" + c.socketFlag() + " &"
}

// parent is the name of a process's parent, empty where there is none to be seen.
func parent(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(text), ") ") // state and parent follow (proc_pid_stat(5))
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return ""
	}
	name, _ := os.ReadFile("/proc/" + fields[1] + "/comm")
	return strings.TrimSpace(string(name))
}
