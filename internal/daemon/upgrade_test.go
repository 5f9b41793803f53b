package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/daemon"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

func upgrade(t testing.TB, c *client.Client, binary string) (*pb.UpgradeResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return c.Upgrades.Upgrade(ctx, &pb.UpgradeRequest{Binary: binary})
}

// One portd after the other takes over while clients connect, others reserve and release, and somebody watches. Nobody notices.
func TestUpgradedUnderLoad(t *testing.T) {
	nstest.Need(t)
	rounds, reservations := 3, 100
	if os.Getenv("PORTD_LONG") != "" {
		rounds, reservations = 50, 1000
	}
	d := portdtest.New(t)
	k := startKept(t, d, binary(t))
	c := d.Client(t)
	reserve(t, c, "web", "tcp/8080")
	many(t, c, 20_000, reservations)
	session, err := c.OpenSession(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l := startStorm(t, d, "web", "127.0.0.1:8080", 64)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	h := newHistory()
	var others sync.WaitGroup
	for side := range 4 {
		others.Go(func() { h.make(ctx, t, d, 22_000+side*1000) })
	}
	failed := make(chan error, 100)
	others.Go(func() { // who repeats what may be repeated sees no call fail
		for ctx.Err() == nil {
			if _, err := c.Reservations.GetReservation(ctx, &pb.GetReservationRequest{Reservation: "web"}); err != nil && ctx.Err() == nil {
				select {
				case failed <- err:
				default:
				}
			}
		}
	})
	var pause, frozen time.Duration
	pid := k.pid(t, 0)
	for round := range rounds {
		got, err := upgrade(t, c, "")
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if int(got.GetOldPid()) != pid || got.GetNewPid() == got.GetOldPid() {
			t.Errorf("from %d to %d, it was %d", got.GetOldPid(), got.GetNewPid(), pid)
		}
		pid = int(got.GetNewPid())
		pause, frozen = max(pause, got.GetPause().AsDuration()), max(frozen, got.GetFrozen().AsDuration())
		if now := k.pid(t, 0); now != pid {
			t.Errorf("%d answers, not %d", now, pid)
		}
	}
	cancel()
	others.Wait()
	l.end()
	select {
	case <-session.Done():
		t.Errorf("the session has ended: %v", session.Err())
	default:
	}
	if err := session.End(); err != nil {
		t.Error(err)
	}
	t.Logf("%d upgrades with %d reservations: %v; hand-off paused for %v at most, changes for %v; %d changes answered, %d refused",
		rounds, reservations, l, pause.Round(100*time.Microsecond), frozen.Round(100*time.Microsecond), h.answered, h.failed)
	if l.refused.Load()+l.reset.Load()+l.other.Load() > 0 {
		t.Errorf("%v", l)
	}
	if h.failed > 0 {
		t.Errorf("%d changes failed: %v", h.failed, h.err)
	}
	select {
	case err := <-failed:
		t.Errorf("a call failed: %v", err)
	default:
	}
	h.check(t, c)
}

// Whatever the new one does wrong, and whenever: the old one goes on, says why, and nobody else notices; the next one may do it right.
func TestNotUpgraded(t *testing.T) {
	nstest.Need(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("this is no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("#!/bin/sh\necho another program altogether >&2\nexit 4\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	before := filepath.Join(dir, "before")
	if err := os.WriteFile(before, []byte("#!/bin/sh\necho 'portd: flag provided but not defined: -prove' >&2\nexit 2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	yes := filepath.Join(dir, "yes")
	if err := os.WriteFile(yes, []byte("#!/bin/sh\necho yes\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	d := portdtest.New(t)
	step := filepath.Join(dir, "step")
	k := startKept(t, d, self(t), envAct+"=daemon", envStep+"="+step, envVersion+"=new")
	c := d.Client(t)
	reserve(t, c, "web", "tcp/8080")
	l := startStorm(t, d, "web", "127.0.0.1:8080", 8)
	type row struct {
		name, does string
		binary     string
		step, says string
		long       bool
		again      int // how often more: each time is as the first
	}
	for _, tt := range some(t, 9, []row{
		{name: "no program", binary: text, step: "prove", says: "exec format error"},
		{name: "not there", binary: filepath.Join(dir, "nothing"), step: "prove", says: "no such file"},
		{name: "another program", binary: other, step: "prove", says: "another program altogether"},
		{name: "a program that is content", binary: yes, step: "prove", says: `is no portd: it does not say that it reads the store, but "yes"`},
		{name: "a directory", binary: dir, step: "prove", says: "is a directory"},
		{name: "a portd from before upgrades", binary: before, step: "prove", says: "before there were upgrades: stop this one"},
		{name: "cannot read the store", does: "new exit prove", step: "prove", says: "it had enough"},
		{name: "killed at its start", does: "new kill hello", step: "hello", says: "ended"},
		{name: "ends at its start", does: "new exit hello", step: "hello", says: "ended"},
		{name: "hangs at its start", does: "new hang hello", step: "hello", says: "10s", long: true},
		{name: "another protocol", does: "new protocol hello", step: "hello", says: `protocol "9"`},
		{name: "killed with the store open", does: "new kill opened-store", step: "prepared", says: "ended"},
		{name: "killed after it loaded", does: "new kill loaded", step: "prepared", says: "ended"},
		{name: "killed with the workers", does: "new kill workers", step: "prepared", says: "ended"},
		{name: "killed when prepared", does: "new kill prepared", step: "prepared", says: "ended", again: 1},
		{name: "hangs when prepared", does: "new hang prepared", step: "prepared", says: "15s", long: true},
		{name: "killed at the last", does: "new kill yours", step: "good", says: "ended"},
		{name: "hangs at the last", does: "new hang yours", step: "good", says: "5s", long: true},
	}...) {
		t.Run(tt.name, func(t *testing.T) {
			if tt.long && os.Getenv("PORTD_LONG") == "" {
				t.Skip("takes as long as the successor may; set PORTD_LONG=1")
			}
			if err := os.WriteFile(step, []byte(tt.does), 0o600); err != nil {
				t.Fatal(err)
			}
			pid := k.pid(t, 0)
			began := l.served.Load()
			for range 1 + tt.again {
				_, err := upgrade(t, c, tt.binary)
				var e *client.Error
				if !errors.As(err, &e) || !errors.Is(err, client.ErrUnsupported) || e.Reason != "UPGRADE_FAILED" ||
					e.Metadata["step"] != tt.step || !strings.Contains(e.Error(), tt.says) {
					t.Errorf("%v; want it to fail at %s and say %q", err, tt.step, tt.says)
				}
				if now := k.pid(t, 0); now != pid {
					t.Fatalf("%d answers, not %d", now, pid)
				}
			}
			more := reserve(t, c, "", "tcp/8081").GetId()
			wantHeld(t, 8080, 8081)
			waitFor(t, "client that is served after it", func() bool { return l.served.Load() > began })
			if l.refused.Load()+l.reset.Load()+l.other.Load() > 0 {
				t.Fatalf("%v", l)
			}
			if tt.step != "prove" { // the keeper knows who the daemon is: it comes back with everything
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				k.pid(t, pid)
				wantHeld(t, 8080, 8081)
			}
			releaseRef(t, c, more)
			wantFree(t, 8081)
			if left, err := filepath.Glob(filepath.Join(d.State, "upgrade-*")); err != nil || len(left) > 0 {
				t.Errorf("%v is left, %v", left, err)
			}
		})
	}
}

// What the new one found changed while it loaded is not in the store before it is the daemon: the old one goes on with its own.
func TestNotUpgradedAfterAChange(t *testing.T) {
	nstest.Need(t)
	d := portdtest.New(t)
	k := startKept(t, d, self(t), envAct+"=daemon", envStep+"=new kill prepared", envVersion+"=new")
	c := d.Client(t)
	reserve(t, c, "web", "tcp/127.0.0.1:8080")
	k.stop(t)
	// Lost to a socket that is of no thief any more when the new one looks, which is sooner than the old one is told of it.
	_, let := steal(t, "127.0.0.1:8080")
	k = startKept(t, d, self(t), envAct+"=daemon", envStep+"=new kill prepared", envVersion+"=new", envAtHello+"="+d.Socket+".let")
	waitFor(t, "thief's way out", func() bool { return unix.Mkfifo(d.Socket+".let", 0o600) == nil })
	done := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(d.Socket+".let", os.O_WRONLY, 0) // opens when the new one waits
		if err == nil {
			let()
			err = f.Close()
		}
		done <- err
	}()
	if _, err := upgrade(t, c, ""); err == nil {
		t.Fatal("upgraded")
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	pid := k.pid(t, 0)
	reserve(t, c, "more", "tcp/8081")
	waitFor(t, "port that is free again", func() bool {
		return get(t, c, "web").GetAssigned()[0].GetState() == pb.EndpointState_ENDPOINT_STATE_HELD
	})
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	k.pid(t, pid)
	get(t, c, "more")
	wantHeld(t, 8081)
}

// An old one that does not get its store back refuses changes, and makes them again when it does.
func TestNotUpgradedWithoutTheStore(t *testing.T) {
	d := portdtest.New(t)
	fifo := d.Socket + ".fifo"
	startKept(t, d, self(t), envAct+"=daemon", envStep+"=new kill opened-store", envVersion+"=new", envAtHello+"="+fifo)
	c := d.Client(t)
	first := reserve(t, c, "first", "tcp/any")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(d.State, "portd.db")
	done := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(fifo, os.O_WRONLY, 0) // opens when the new one has the store
		if err == nil {
			err = errors.Join(os.Rename(file, file+".away"), os.Mkdir(file, 0o700), f.Close())
		}
		done <- err
	}()
	if _, err := upgrade(t, c, ""); err == nil || !strings.Contains(err.Error(), "cannot be opened again") {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: first.GetId()}); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("without its store: %v", err)
	}
	if err := errors.Join(os.Remove(file), os.Rename(file+".away", file)); err != nil {
		t.Fatal(err)
	}
	reserve(t, c, "second", "tcp/any")
	releaseRef(t, c, first.GetId())
}

// The old one is killed in the middle of an upgrade: there is one portd afterwards, with everything.
func TestKilledWhileUpgraded(t *testing.T) {
	nstest.Need(t)
	d := portdtest.New(t)
	step := filepath.Join(t.TempDir(), "step")
	k := startKept(t, d, self(t), envAct+"=daemon", envStep+"="+step, envVersion+"=new")
	c := d.Client(t)
	reserve(t, c, "web", "tcp/8080")
	l := startStorm(t, d, "web", "127.0.0.1:8080", 8)
	for _, does := range some(t, 4,
		"old kill prove", "old kill hello", "old kill frozen", "old kill closed-store", "old kill given", "old kill prepared", "old kill suspended",
		"old kill yours", "old kill good", "new kill good", "new kill resumed",
	) {
		t.Run(does, func(t *testing.T) {
			if err := os.WriteFile(step, []byte(does), 0o600); err != nil {
				t.Fatal(err)
			}
			pid := k.pid(t, 0)
			_, _ = upgrade(t, c, "") // there is nobody to say how it went
			k.pid(t, pid)
			waitFor(t, "portd that can be asked for more", func() bool {
				_, err := c.Reservations.Reserve(t.Context(), &pb.ReserveRequest{Name: "more", Spec: spec(t, "tcp/8081")})
				return err == nil
			})
			wantHeld(t, 8080, 8081)
			before := l.served.Load()
			waitFor(t, "client that is served after it", func() bool { return l.served.Load() > before })
			t.Logf("%v", l)
			if l.refused.Load()+l.other.Load() > 0 || l.reset.Load() > 8 {
				t.Errorf("%v", l)
			}
			if _, err := c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: "more"}); err != nil {
				t.Error(err)
			}
			wantFree(t, 8081)
		})
	}
}

// A portd that proves itself on a copy that is not whole says so, and what of it.
func TestProve(t *testing.T) {
	d := portdtest.Start(t)
	c := d.Client(t)
	reserve(t, c, "web", "udp/any")
	dir := t.TempDir()
	copied := filepath.Join(dir, "portd.backup")
	f, err := os.Create(copied)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Backup(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	f.Close()
	cfg := daemon.Config{Version: "new", Policy: d.Policy}
	if said, err := daemon.Prove(t.Context(), cfg, dir); err != nil || !strings.Contains(said, "1 reservations") {
		t.Errorf("%q, %v", said, err)
	}
	whole, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	for _, damaged := range [][]byte{nil, whole[:len(whole)/2], append(bytes.Clone(whole[:len(whole)-40]), make([]byte, 40)...)} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "portd.backup"), damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if said, err := daemon.Prove(t.Context(), cfg, dir); err == nil {
			t.Errorf("it takes %d of %d bytes for a store: %s", len(damaged), len(whole), said)
		}
	}
	if _, err := daemon.Prove(t.Context(), daemon.Config{Policy: filepath.Join(dir, "nosuch.yaml")}, dir); err == nil {
		t.Error("it starts without its policy file")
	}
}

func TestUpgradeDenied(t *testing.T) {
	d := portdtest.Start(t)
	c := d.Client(t)
	// This one is a part of the test.
	if _, err := upgrade(t, c, ""); !errors.Is(err, client.ErrUnsupported) {
		t.Error(err)
	}
	if _, err := upgrade(t, c, "relative"); !errors.Is(err, client.ErrInvalid) {
		t.Error(err)
	}
}

// Without a keeper there is an upgrade all the same: the old one gives everything itself, and exits 0.
func TestUpgradedBare(t *testing.T) {
	nstest.Need(t)
	d := portdtest.New(t)
	p := portd(t, d, "")
	p.begin(t)
	c := d.Client(t)
	reserve(t, c, "web", "tcp/8080")
	l := startStorm(t, d, "web", "127.0.0.1:8080", 8)
	events := newWatch(t, c, 0)
	events.next(t) // it stands
	got, err := upgrade(t, c, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pidfd, err := unix.PidfdOpen(int(got.GetNewPid()), 0)
		if err != nil {
			return
		}
		defer unix.Close(pidfd)
		_ = unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0)
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 20_000)
	})
	// As a service manager hears it: the successor says who it is, and that it is ready.
	for _, want := range []string{fmt.Sprintf("MAINPID=%d", got.GetNewPid()), "READY=1"} {
		p.said(t, want)
	}
	// Not Wait of p, which waits for the end of its log: that is the successor's now.
	if st, err := p.Process.Wait(); err != nil || st.ExitCode() != 0 {
		t.Errorf("the old one exits %v, %v", st, err)
	}
	reserve(t, c, "more", "tcp/8081")
	wantHeld(t, 8080, 8081)
	l.end()
	if l.served.Load() == 0 || l.refused.Load()+l.reset.Load()+l.other.Load() > 0 {
		t.Errorf("%v", l)
	}
}

// some are n of them, by chance and in their order, or all with PORTD_LONG=1: each takes a second or two.
func some[T any](t *testing.T, n int, all ...T) []T {
	t.Helper()
	if os.Getenv("PORTD_LONG") != "" {
		return all
	}
	chosen := rand.Perm(len(all))[:n]
	slices.Sort(chosen)
	var out []T
	for _, i := range chosen {
		out = append(out, all[i])
	}
	return out
}
