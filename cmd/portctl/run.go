package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"

	"github.com/spf13/cobra"
)

const runHelp = `Run starts a program with the socket of a reserved port: the listening socket, or the
UDP socket. The program finds it as systemd's services do (sd_listen_fds(3)): the
descriptors from 3 on, LISTEN_FDS says how many, LISTEN_FDNAMES their names (the
reservation's, else like tcp-8080 or unix), and LISTEN_PID is the program's own. The socket is
non-blocking, and must stay so: portd has it too. One more descriptor is open in the
program, the last one, of its attachment to portd: portd takes the program for gone when
it and its children have closed that, or when the program ends.

If nobody has reserved the endpoint, run does, and the reservation ends with the program
unless --keep is given. A reservation of yours that is there is used and left alone: when
the program dies, however that comes about, its port goes on listening, clients wait, and
the next run serves them. Datagrams go on queueing for five seconds, for the next run to
read; a run that starts while another one is there shares its UDP socket, or has one of its
own where the port is held by a group of them (reserve --group).

A program outlives portd, however that ends. When portd was stopped and is started again, it
gets a TCP socket back from the program that has it, by way of run, and nobody is refused
meanwhile; where the kernel or the policy forbids that, run says so. Of a UDP or unix
socket, or a range of ports, there is no way back: portd has lost it until the program ends.

The program can do with the socket what it likes, so only the port's owner, root and the
user that portd runs as may run programs on it. portd neither counts its connections nor
gives them to another program when it dies; a program that attaches for its connections
(client.Listen in Go) leaves that to portd.

A program that insists on binding its port itself is run with --record-only: the port is
reserved in portd's table only, {port} and {addr} in the program's arguments are replaced
by what it is to bind, and PORT is in its environment.

Run passes the program's input, output and exit code through (128+n if signal n killed
it, 126 and 127 if it could not be run), and signals to it, but for those that a
terminal sends to both.`

type runFlags struct {
	name             string
	keep, recordOnly bool
}

func (c *ctl) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:         "run ENDPOINT|RESERVATION… -- PROGRAM [ARGUMENT…]",
		Short:       "Run a program with the socket of a port",
		Annotations: map[string]string{anyBytes: "PROGRAM"},
		Long:        runHelp,
		Example: `  portctl run tcp/8080 -- ./server
  portctl run --keep --name dns tcp/127.0.0.1:53 udp/127.0.0.1:53 -- ./resolver
  portctl run web -- ./server --verbose
  portctl run --record-only tcp/any -- python3 -m http.server {port}`,
	}
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if cmd.ArgsLenAtDash() >= 0 {
			return nil, cobra.ShellCompDirectiveDefault // files
		}
		return c.completeReservations(cmd, args, prefix)
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		switch at := cmd.ArgsLenAtDash(); {
		case at < 0:
			return errors.New("the program to run stands after --, as in portctl run tcp/8080 -- ./server")
		case at == 0:
			return errors.New("what to run the program on stands before --, as in portctl run tcp/8080 -- ./server")
		case at == len(args):
			return errors.New("there is no program after --")
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		at := cmd.ArgsLenAtDash()
		return c.runOn(cmd.Context(), c.there(words(args[:at])), f, args[at:])
	}
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "`name` of the reservation, where one is made")
	flags.BoolVar(&f.keep, "keep", false, "keep the reservation that is made when the program ends")
	flags.BoolVar(&f.recordOnly, "record-only", false, "the program binds the port itself, told by {port} and {addr}")
	c.netnsFlag(cmd)
	return cmd
}

// runOn runs a program on endpoints or reservations and ends as it does.
func (c *ctl) runOn(ctx context.Context, refs []string, f runFlags, argv []string) error {
	// Before anything is changed: a program that is not there is the likeliest mistake.
	path, err := lookProgram(argv[0])
	if err != nil {
		return err
	}
	if f.name != "" && len(refs) > 1 {
		return usagef("--name names one reservation, not %d", len(refs))
	}
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	o := &occupant{ctl: c, cl: cl, flags: f, prog: argv[0]}
	defer o.leave()
	var at []place
	for _, ref := range refs {
		p, err := o.occupy(ctx, ref)
		if err != nil {
			return err
		}
		at = append(at, p)
	}
	if f.recordOnly {
		return o.startItself(path, argv, at)
	}
	return o.startWithSockets(path, argv, at)
}

// lookProgram finds a program as a shell does, with a shell's exit codes.
func lookProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	// Without the words that say what LookPath did.
	if e := (*exec.Error)(nil); errors.As(err, &e) {
		err = e.Err
	}
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		err = e.Err
	}
	code := exitNoProgram
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, exec.ErrDot) {
		code = exitNotExecutable
	}
	return "", &programError{fmt.Errorf("%s: %w", name, err), code}
}

// A programError says why a program could not be run.
type programError struct {
	error
	code int
}

func (e *programError) Unwrap() error { return e.error }
