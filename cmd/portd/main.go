// Portd is the port authority of a host. See portd(8).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/daemon"
	"github.com/portd/portd/internal/keeper"
)

func main() {
	// A log that nobody reads any more, and a file that may grow no further, are errors of the write and not the end of portd.
	signal.Ignore(unix.SIGPIPE, unix.SIGXFSZ)
	os.Exit(run(daemon.Config{Args: os.Args}, os.Args[1:], os.Stdout, os.Stderr))
}

// listen has the signals heard that portd knows. What a process has heard is lost when it becomes its keeper; so it does not listen before.
func listen(cfg *daemon.Config) context.Context {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	// A second signal ends portd at once. The first may come twice: from the terminal or a service manager, and from the keeper.
	context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, stop) })
	reload, upgrade := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(reload, unix.SIGHUP)
	signal.Notify(upgrade, unix.SIGUSR2)
	cfg.Reload, cfg.Upgrade = reload, upgrade
	return ctx
}

const usage = `usage: portd [--socket PATH] [--state DIR] [--policy FILE] [--no-keeper]
             [--no-holder] [--acceptors N] [--read-only] [--log-level LEVEL]
       portd --check [--policy FILE]
       portd --restore FILE | --restore-newest [--state DIR]

portd is the port authority of this host: it holds ports, listens on behalf of
programs, and hands connections to them. portctl talks to it. It stays in the
foreground, and stops at SIGTERM or SIGINT; the ports close with it and are held
again when it starts. At SIGHUP it reads its policy file again; at SIGUSR2 what is
now at the path that it was started from takes over, as portctl upgrade has it.

It runs as two processes. A small one, the keeper, has what the other has open,
and starts that again when it dies: no port closes meanwhile.

  --socket PATH      the control socket; the hand-off socket and the lock lie
                     beside it (default: /run/portd/portd.sock for root, else
                     $XDG_RUNTIME_DIR/portd/portd.sock)
  --state DIR        where the reservations are kept (default: /var/lib/portd
                     for root, else ~/.local/state/portd)
  --policy FILE      pools of ports, and how much history is kept, as
                     portd-policy(5) has them (default: /etc/portd/policy.yaml for
                     root, else ~/.config/portd/policy.yaml, where it is there)
  --no-keeper        run as one process: the ports close when it dies. None is
                     started either where the service manager has an FD store
                     (FDSTORE in the environment; systemd's FileDescriptorStoreMax=)
  --no-holder        do without the process that shares portd's descriptors, with which
                     a kill of portd loses no connection that it has just accepted
  --acceptors N      accept connections and hand them over by so many threads, 1 to 8
                     (default: one for each four processors)
  --read-only        serve what is whole of reservations that are damaged: their ports
                     are held, and nobody changes anything
  --check            read the policy file, say what is wrong with it, and exit
  --restore FILE     put a backup in the place of the reservations while no portd runs,
                     and exit; "-" is standard input. What was there is kept beside
  --restore-newest   likewise, from the newest copy that is whole of those that portd
                     has made by itself
  --prove DIR        read the copy of the reservations in DIR and exit; a portd that
                     is to be upgraded calls the new one so
  --log-level LEVEL  debug, info, warn or error (default: info)
  --version          print the version
  --help             print this

Logs go to standard error: text on a terminal, JSON otherwise.
`

// run is portd as a function: its exit code is 0 when it was asked to stop, 1 when it failed, 2 for wrong usage.
func run(cfg daemon.Config, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("portd", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var level slog.Level
	version, check := flags.Bool("version", false, ""), flags.Bool("check", false, "")
	noKeeper := flags.Bool("no-keeper", false, "")
	prove := flags.String("prove", "", "")
	flags.BoolVar(&cfg.ReadOnly, "read-only", false, "")
	flags.BoolVar(&cfg.NoHolder, "no-holder", false, "")
	flags.IntVar(&cfg.Acceptors, "acceptors", 0, "")
	restore, restoreNewest := flags.String("restore", "", ""), flags.Bool("restore-newest", false, "")
	flags.StringVar(&cfg.Socket, "socket", "", "")
	flags.StringVar(&cfg.StateDir, "state", "", "")
	flags.StringVar(&cfg.Policy, "policy", "", "")
	flags.TextVar(&level, "log-level", slog.LevelInfo, "")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case err == nil && (cfg.Acceptors < 0 || cfg.Acceptors > daemon.MostAcceptors):
		err = fmt.Errorf("--acceptors %d: it is from 1 to %d, or 0 for one for each four processors", cfg.Acceptors, daemon.MostAcceptors)
	case err == nil && *restore != "" && *restoreNewest:
		err = errors.New("--restore and --restore-newest say where from; say it once")
	}
	if err != nil {
		fmt.Fprintf(stderr, "portd: %v\nportd: try: portd --help\n", err)
		return 2
	}
	cfg.Version = buildVersion()
	if *version {
		fmt.Fprintln(stdout, "portd", cfg.Version)
		return 0
	}
	if *check {
		return checkPolicy(cfg, stdout, stderr)
	}
	if *prove != "" {
		return proveItself(listen(&cfg), cfg, *prove, stdout, stderr)
	}
	if *restore != "" || *restoreNewest {
		return restoreFrom(listen(&cfg), cfg, *restore, stdout, stderr)
	}
	var flush func()
	cfg.Log, flush = keeper.Log(stderr, level)
	defer flush()
	if !*noKeeper && keeper.Wanted() {
		err := keeper.Become(level)
		cfg.Log.Warn("portd runs without a keeper: its ports close if it dies", "err", err)
	}
	ctx := listen(&cfg)
	heedMemoryLimit()
	err = daemon.Run(ctx, cfg)
	switch {
	case err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled): // asked to stop while it started
		cfg.Log.Info("stopped", "err", err)
	case err != nil && ctx.Err() != nil:
		cfg.Log.Error("portd has stopped, and something of that failed", "err", err)
		return 1
	case err != nil:
		cfg.Log.Error("portd cannot go on", "err", err)
		return 1
	}
	return 0
}

// checkPolicy tells what daemon.Check finds, an error a line: the editor of whoever wrote the file can go to each.
func checkPolicy(cfg daemon.Config, stdout, stderr io.Writer) int {
	said, err := daemon.Check(cfg)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	fmt.Fprintln(stdout, said)
	return 0
}

// proveItself tells the portd that this one may take the place of whether it can.
func proveItself(ctx context.Context, cfg daemon.Config, dir string, stdout, stderr io.Writer) int {
	said, err := daemon.Prove(ctx, cfg, dir)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	fmt.Fprintln(stdout, said)
	return 0
}

// restoreFrom puts a backup in the place of the state.
func restoreFrom(ctx context.Context, cfg daemon.Config, file string, stdout, stderr io.Writer) int {
	said, err := daemon.Restore(ctx, cfg, file, os.Stdin)
	if err != nil {
		fmt.Fprintf(stderr, "portd: %v\n", err)
		return 1
	}
	fmt.Fprintf(stdout, "%s\n", said)
	return 0
}

// buildVersion is what the Go tool put into the binary: a release's version, or the revision it was built from.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}
