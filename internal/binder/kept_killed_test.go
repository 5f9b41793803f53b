package binder_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/registry"
)

// envVictim makes the test binary a process with a Binder that is going to be killed: the seed of what it does, on the ports from
// envVictimPort on. Its store's socket is descriptor 3.
const (
	envVictim     = "PORTD_BINDER_VICTIM"
	envVictimPort = "PORTD_BINDER_VICTIM_PORT"
	victimPorts   = 120
)

// beVictim holds and releases ports for ever, and says of each what it is about to do, and when it is done. Where descriptors are few
// some are parked.
func beVictim() int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "victim:", err)
		return 1
	}
	seed, _ := strconv.ParseUint(os.Getenv(envVictim), 10, 64)
	first, _ := strconv.Atoi(os.Getenv(envVictimPort))
	rng := rand.New(rand.NewPCG(seed, 0))
	if seed%2 == 0 {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 80, Max: 80}); err != nil {
			return fail(err)
		}
	}
	store := fdstore.New(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err := store.AttachSame(3, -1); err != nil {
		return fail(err)
	}
	b, err := binder.New(binder.Config{Keep: store, Spare: 20})
	if err != nil {
		return fail(err)
	}
	out := os.Stdout // not buffered
	held := map[int]bool{}
	for {
		p := rng.IntN(victimPorts)
		ep := registry.Endpoint{Netns: registry.HostNetns, Proto: registry.TCP, Addr: registry.AnyAddr}.At(uint16(first + p))
		switch {
		case !held[p]:
			fmt.Fprintf(out, "hold %d\n", p)
			if err := b.Bind(context.Background(), registry.Bind{Key: key(ep), Endpoint: ep}); err != nil {
				return fail(err)
			}
			if rng.IntN(10) == 0 {
				if err := b.Listen(context.Background(), key(ep), registry.ListenOptions{}); err != nil {
					return fail(err)
				}
			}
			fmt.Fprintf(out, "held %d\n", p)
		case rng.IntN(3) == 0:
			fmt.Fprintf(out, "release %d\n", p)
			if err := b.Release(key(ep)); err != nil {
				return fail(err)
			}
			fmt.Fprintf(out, "released %d\n", p)
		default:
			continue
		}
		held[p] = !held[p]
	}
}

// TestKilled kills processes that hold and release ports, at any moment: what was answered as held is held all the time, by the same
// socket, and what was answered as released is free at once.
func TestKilled(t *testing.T) {
	kills := 20
	if os.Getenv("PORTD_LONG") != "" {
		kills = 200
	}
	w := keep(t, binder.Config{})
	w.die()
	first := ports(victimPorts)
	for range kills {
		seed := rand.Uint64()
		if os.Geteuid() != 0 {
			seed |= 1 // the descriptors in its messages count, too
		}
		w.kill(t, seed, first)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func (w *warden) kill(t *testing.T, seed uint64, first uint16) {
	ends := w.pair()
	w.tell("serve", ends[1])
	_ = unix.Close(ends[1])
	theirs := os.NewFile(uintptr(ends[0]), "store")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envVictim+"="+fmt.Sprint(seed), envVictimPort+"="+fmt.Sprint(first), noLinger)
	cmd.ExtraFiles, cmd.Stderr = []*os.File{theirs}, t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	states := map[int]string{}
	lines := bufio.NewScanner(out)
	for n := rand.IntN(600); lines.Scan(); n-- {
		if n == 0 {
			_ = cmd.Process.Kill()
		}
		var what string
		var p int
		if _, err := fmt.Sscan(lines.Text(), &what, &p); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		states[p] = what
	}
	_ = cmd.Wait()

	check := func() (held []registry.Endpoint) {
		for p, what := range states {
			ep := at(t, "tcp/1", first+uint16(p))
			switch what {
			case "held":
				wantHeld(t, ep)
				held = append(held, ep)
			case "released":
				wantAllFree(t, ep)
			}
		}
		return held
	}
	check()
	w.ended()
	w.begin()
	socks := w.sockets()
	held := check()
	for _, ep := range held {
		hold(t, w.b, ep)
	}
	check()
	if doubtful := len(w.b.Unclaimed()); doubtful > 1 {
		t.Errorf("the keeper had %d sockets that nobody was told of", doubtful)
	}
	check()
	now := w.sockets()
	for _, s := range now {
		if !slices.Contains(socks, s) {
			t.Error("a port that was held is bound anew")
		}
	}
	if len(now) != len(held) {
		t.Errorf("the keeper has %d sockets, want %d", len(now), len(held))
	}
	for _, ep := range held {
		release(t, w.b, ep)
	}
	w.die()
}
