// Handoff measures what handing connections over costs, beside servers that need no portd and a proxy that is put in front.
//
// It builds portd, the servers and the load generator, starts all of them, and visits one after the other, so many rounds: the
// machine's speed drifts, so only ratios within a round count, and their median is what is printed.
//
//	go run ./bench/handoff                 (or make bench-handoff), at the root of the repository; needs cc
//	go run ./bench/handoff -haproxy        HAProxy, too, which is installed where it is missing
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

type options struct {
	rounds  int
	length  time.Duration // of one visit
	haproxy bool
	only    string
	bin     string // where everything is built already
	portd   string
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 9, "how often each server is visited")
	flag.DurationVar(&o.length, "length", 400*time.Millisecond, "how long each visit takes")
	flag.BoolVar(&o.haproxy, "haproxy", false, "compare with HAProxy too, and install it if it is missing")
	flag.StringVar(&o.only, "only", "", "a regular expression: only figures whose names it matches")
	flag.StringVar(&o.portd, "portd", "", "measure this portd in place of the one built from the source")
	flag.StringVar(&o.bin, "bin", "", "for the benchmark's own use")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench-handoff:", err)
		os.Exit(1)
	}
}

// run builds, and goes on in a network namespace of its own where it may have one.
func run(ctx context.Context, o options, out io.Writer) error {
	if o.bin != "" {
		if err := loopbackUp(); err != nil {
			return err
		}
		return measure(ctx, o, out)
	}
	dir, err := os.MkdirTemp("", "bench-handoff")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.bin = dir; o.portd == "" {
		o.portd = filepath.Join(dir, "portd")
	}
	if err := build(ctx, o); err != nil {
		return err
	}
	again := exec.CommandContext(ctx, "/proc/self/exe", append(os.Args[1:], "-bin", dir, "-portd", o.portd)...)
	again.Cancel = func() error { return again.Process.Signal(syscall.SIGTERM) }
	again.Stdout, again.Stderr = out, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if uid := os.Geteuid(); uid != 0 {
		again.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		again.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		again.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
		again.SysProcAttr.AmbientCaps = []uintptr{12} // CAP_NET_ADMIN, for the loopback device
	}
	if err := again.Start(); err == nil {
		return again.Wait()
	}
	fmt.Fprintln(os.Stderr, "no network namespace of its own: measuring over this host's loopback")
	return measure(ctx, o, out)
}

// build makes everything from the source.
func build(ctx context.Context, o options) error {
	if o.haproxy {
		if _, err := exec.LookPath("haproxy"); err != nil {
			if err := tool(ctx, "apt-get", "install", "-y", "--no-install-recommends", "haproxy"); err != nil {
				return err
			}
		}
	}
	for _, name := range []string{"load", "direct", "worker", "daemon"} {
		if err := tool(ctx, "cc", "-O2", "-o", filepath.Join(o.bin, "c-"+name), "bench/handoff/c/"+name+".c"); err != nil {
			return err
		}
	}
	return tool(ctx, "go", "build", "-buildvcs=false", "-o", o.bin+"/", "./cmd/portd", "./bench/handoff/server")
}

func tool(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w\n%s", name, args, err, said)
	}
	return nil
}
