package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/registry"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// programName is the hidden command by which run starts portctl once more, to become the program.
const programName = "__program"

type becoming struct {
	handoff string
	wishes  []string // reservations or endpoints
	names   []string // of their descriptors; empty for one like tcp-8080
	seats   int      // descriptors from 3 on that are free for the sockets; the next one is the pipe to report to
}

func (c *ctl) programCommand() *cobra.Command {
	var b becoming
	cmd := &cobra.Command{Use: programName + " -- PATH ARGV…", Hidden: true, Args: cobra.MinimumNArgs(2)}
	cmd.PersistentPreRunE = func(*cobra.Command, []string) error { // the words are run's, which has checked them
		c.understood = true
		return nil
	}
	flags := cmd.Flags()
	flags.StringVar(&b.handoff, "handoff", "", "")
	flags.StringArrayVar(&b.wishes, "wish", nil, "")
	flags.StringArrayVar(&b.names, "fdname", nil, "")
	flags.IntVar(&b.seats, "seats", 0, "")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		pipe := firstSeat + b.seats
		unix.CloseOnExec(pipe)
		err := b.become(cmd.Context(), args[0], args[1:])
		text, next := explain(err)
		line, _ := json.Marshal(report{text, next, exitCode(err)})
		_, _ = unix.Write(pipe, line)
		return status(exitCode(err))
	}
	return cmd
}

// firstSeat is SD_LISTEN_FDS_START (sd_listen_fds(3)).
const firstSeat = 3

// become attaches, takes the sockets and turns into the program; it returns only if it cannot.
func (b becoming) become(ctx context.Context, path string, argv []string) error {
	// portd shows its workers by their names, and asks before this is the program.
	_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(argv[0])), 0)
	cfg := client.AttachConfig{Socket: b.handoff}
	for _, ref := range b.wishes {
		cfg.Wishes = append(cfg.Wishes, client.Wish{Reference: ref, Socket: true})
	}
	a, err := client.Attach(ctx, cfg)
	if err != nil {
		return err
	}
	var names []string
	for _, l := range a.Listeners {
		ep, err := registry.ParseEndpoint(l.Endpoint)
		if err != nil {
			return fmt.Errorf("portd calls an endpoint %q: %w", l.Endpoint, err)
		}
		want, wantErr := registry.ParseEndpoint(b.wishes[l.Wish])
		for i, s := range l.Sockets {
			port := ep.First + uint16(i)
			if wantErr == nil && (port < want.First || port > want.Last) {
				continue // one of a range was wished for; the others end with this process
			}
			if len(names) == b.seats {
				return fmt.Errorf("portd gave more sockets than the %d that were there a moment ago", b.seats)
			}
			if err := seat(s, firstSeat+len(names)); err != nil {
				return err
			}
			// A colon would part names, so that the endpoint's own text is none.
			names = append(names, cmp.Or(b.names[l.Wish], plainName(ep.Proto, port)))
		}
	}
	for fd := firstSeat + len(names); fd < firstSeat+b.seats; fd++ {
		unix.CloseOnExec(fd)
	}
	if err := keepAttached(a, firstSeat+len(names)); err != nil {
		return err
	}
	env := append(os.Environ(),
		fmt.Sprintf("LISTEN_PID=%d", os.Getpid()),
		fmt.Sprintf("LISTEN_FDS=%d", len(names)),
		"LISTEN_FDNAMES="+strings.Join(names, ":"))
	return notRun(argv[0], syscall.Exec(path, argv, env))
}

// plainName is what a socket is called whose reservation has no name.
func plainName(p registry.Protocol, port uint16) string {
	if p == registry.Unix { // its path may have what such a name may not
		return "unix"
	}
	return fmt.Sprintf("%v-%d", p, port)
}

// seat makes a socket a descriptor that survives exec. It is borrowed, not taken out: os.File.Fd would make it blocking,
// for portd too.
func seat(s *os.File, at int) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var dupErr error
	if err := raw.Control(func(fd uintptr) { dupErr = unix.Dup3(int(fd), at, 0) }); err != nil {
		return err
	}
	return dupErr
}

// keepAttached lets the hand-off connection survive exec behind the sockets: the attachment lasts until the program has
// closed it, which is when it ends.
func keepAttached(a *client.Attachment, from int) error {
	raw, err := a.SyscallConn()
	if err != nil {
		return err
	}
	var dupErr error
	if err := raw.Control(func(fd uintptr) { _, dupErr = unix.FcntlInt(fd, unix.F_DUPFD, from) }); err != nil {
		return err
	}
	return dupErr
}
