package model

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"

	realdaemon "github.com/portd/portd/internal/daemon"
	realkeeper "github.com/portd/portd/internal/keeper"
	"github.com/portd/portd/internal/nstest"
)

// envStage makes the test binary a portd whose steps wait for who listens at that path.
const envStage = "MODEL_TEST_STAGE"

type actor struct{ *testing.M }

func TestMain(m *testing.M) { nstest.Main(actor{m}) }

func (a actor) Run() int {
	if os.Getenv(envStage) == "" {
		return a.M.Run()
	}
	if err := bePortd(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// bePortd is the program portd, as far as package main decides anything.
func bePortd(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	upgrade := make(chan os.Signal, 1)
	signal.Notify(upgrade, unix.SIGUSR2)
	cfg := realdaemon.Config{Upgrade: upgrade, Args: os.Args, Version: "played", Log: slog.New(slog.NewTextHandler(os.Stderr, nil).WithAttrs([]slog.Attr{slog.Int("pid", os.Getpid())}))}
	flags := flag.NewFlagSet("portd", flag.ContinueOnError)
	flags.StringVar(&cfg.Socket, "socket", "", "")
	flags.StringVar(&cfg.StateDir, "state", "", "")
	flags.StringVar(&cfg.Policy, "policy", "", "")
	prove := flags.String("prove", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *prove != "" {
		said, err := realdaemon.Prove(ctx, cfg, *prove)
		fmt.Println(said)
		return err
	}
	if realkeeper.Wanted() {
		return realkeeper.Become(slog.LevelInfo)
	}
	stage, err := net.Dial("unixpacket", os.Getenv(envStage))
	if err != nil {
		return err
	}
	cfg.Step = func(name string) {
		_, err := fmt.Fprintf(stage, "%d %s", os.Getpid(), name)
		if err == nil {
			_, _ = stage.Read(make([]byte, 1)) // without a stage all goes on by itself
		}
	}
	return realdaemon.Run(ctx, cfg)
}
