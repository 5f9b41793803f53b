package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/portd/portd/internal/daemon"
	"github.com/portd/portd/internal/keeper"
	"github.com/portd/portd/internal/nstest"
	"github.com/rogpeppe/go-internal/testscript"
)

// The scripts in testdata read as portctl's manual. Each has a portd of its own, and the programs below. They share a network
// namespace, so that each has ports of its own: ones that IANA has assigned, which portd never takes for "any".

func TestMain(m *testing.M) {
	testscript.Main(inNamespace{m}, map[string]func(){
		"portctl":  main,
		"portd":    portdMain,
		"serve":    serveMain,
		"dial":     dialMain,
		"stranger": strangerMain,
		"mute":     muteMain,
		"as":       asMain,
		"terminal": terminalMain,
		"web":      webMain,
		"worker":   workerMain,
	})
}

// inNamespace enters the namespace where the tests run, and not where one of the commands does.
type inNamespace struct{ m *testing.M }

func (n inNamespace) Run() int {
	nstest.Enter()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) // where it is ignored, as under nohup, portctl would leave it so
	return n.m.Run()
}

func TestScripts(t *testing.T) {
	nstest.Need(t)
	quick := quick(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			if quick != "" {
				env.Setenv("PATH", quick+string(filepath.ListSeparator)+env.Getenv("PATH"))
			}
			return setup(env)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start":  startCmd,
			"expect": expectCmd,
			"signal": signalCmd,
			"ended":  endedCmd,
		},
		Condition: func(cond string) (bool, error) {
			if cond == "users" {
				return manyUsers(), nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

func setup(env *testscript.Env) error {
	// Other users are to reach portd's socket too.
	for dir := env.WorkDir; strings.Contains(dir, "go-test-script"); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	env.Setenv("PORTD_SOCKET", filepath.Join(env.WorkDir, "run", "portd.sock"))
	env.Setenv("HOME", env.WorkDir)
	// Not the one of this host; a script may have its own.
	policy, err := os.OpenFile(filepath.Join(env.WorkDir, "policy.yaml"), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := policy.Close(); err != nil {
		return err
	}
	csv, err := filepath.Abs("../../internal/ianadb/service-names-port-numbers.csv")
	if err != nil {
		return err
	}
	env.Setenv("IANA_CSV", csv)
	env.Setenv("GORACE", "atexit_sleep_ms=0") // else every command takes a second to end
	all := processes{}
	env.Values[processesKey{}] = all
	env.Defer(all.end)
	return nil
}

// manyUsers says whether this process can become another user.
func manyUsers() bool {
	uids, err := os.ReadFile("/proc/self/uid_map")
	return os.Geteuid() == 0 && err == nil && strings.Contains(string(uids), "4294967295")
}

// portdMain is cmd/portd, but for its flags: it keeps its things in $WORK.
func portdMain() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	work := os.Getenv("WORK")
	cfg := daemon.Config{
		Socket: os.Getenv("PORTD_SOCKET"), StateDir: filepath.Join(work, "state"), Policy: filepath.Join(work, "policy.yaml"), Version: "test", Reload: reload,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Args: os.Args,
	}
	switch {
	case len(os.Args) == 2 && os.Args[1] == "--kept" && keeper.Wanted():
		fail("portd: %v", keeper.Become(slog.LevelInfo))
	case len(os.Args) > 2 && os.Args[len(os.Args)-2] == "--prove":
		said, err := daemon.Prove(ctx, cfg, os.Args[len(os.Args)-1])
		if err != nil {
			fail("%v", err)
		}
		fmt.Println(said)
		return
	}
	err := daemon.Run(ctx, cfg)
	if err != nil {
		fail("portd: %v", err)
	}
}
