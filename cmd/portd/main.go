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

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/daemon"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends portd at once
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, unix.SIGHUP)
	// A log that nobody reads any more, and a file that may grow no further, are errors of the write and not the end of portd.
	signal.Ignore(unix.SIGPIPE, unix.SIGXFSZ)
	os.Exit(run(ctx, reload, os.Args[1:], os.Stdout, os.Stderr))
}

const usage = `usage: portd [--socket PATH] [--state DIR] [--policy FILE] [--log-level LEVEL]
       portd --check [--policy FILE]

portd is the port authority of this host: it holds ports, listens on behalf of
programs, and hands connections to them. portctl talks to it. It stays in the
foreground, and stops at SIGTERM or SIGINT; the ports close with it and are held
again when it starts. At SIGHUP it reads its policy file again.

  --socket PATH      the control socket; the hand-off socket and the lock lie
                     beside it (default: /run/portd/portd.sock for root, else
                     $XDG_RUNTIME_DIR/portd/portd.sock)
  --state DIR        where the reservations are kept (default: /var/lib/portd
                     for root, else ~/.local/state/portd)
  --policy FILE      pools of ports, and how much history is kept, as
                     portd-policy(5) has them (default: /etc/portd/policy.yaml for
                     root, else ~/.config/portd/policy.yaml, where it is there)
  --check            read the policy file, say what is wrong with it, and exit
  --log-level LEVEL  debug, info, warn or error (default: info)
  --version          print the version
  --help             print this

Logs go to standard error: text on a terminal, JSON otherwise.
`

// run is portd as a function: its exit code is 0 when it was asked to stop, 1 when it failed, 2 for wrong usage.
func run(ctx context.Context, reload <-chan os.Signal, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("portd", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	cfg := daemon.Config{Reload: reload}
	var level slog.Level
	version, check := flags.Bool("version", false, ""), flags.Bool("check", false, "")
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
	var flush func()
	cfg.Log, flush = logger(stderr, level)
	defer flush()
	if err := daemon.Run(ctx, cfg); err != nil {
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

// buildVersion is what the Go tool put into the binary: a release's version, or the revision it was built from.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}
