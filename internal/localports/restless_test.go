package localports_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/localports"
	"github.com/portd/portd/internal/registry"
)

// restless keeps ports and lets them go, at random, until SIGTERM. Its argument is its record.
func restless(args []string) error {
	k := localports.New(localports.Config{Record: args[0], BootID: "boot", Netns: "netns"})
	if err := k.Refused(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	var running sync.WaitGroup
	running.Go(func() { _ = k.Run(ctx) })
	defer running.Wait()
	fmt.Println("runs")
	var kept []registry.PortRange
	for ctx.Err() == nil {
		if len(kept) < 20 && rand.IntN(2) == 0 {
			first := uint16(20000 + rand.IntN(1000))
			ports := registry.PortRange{First: first, Last: first + uint16(rand.IntN(3))}
			k.Keep(ports)
			kept = append(kept, ports)
		} else if len(kept) > 0 {
			i := rand.IntN(len(kept))
			k.LetGo(kept[i])
			kept = slices.Delete(kept, i, i+1)
		}
		if err := k.Settle(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// refused expects that it may not.
func refused(args []string) error {
	k := localports.New(localports.Config{Record: args[0]})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = k.Run(ctx) })
	k.Keep(registry.PortRange{First: 9000, Last: 9000})
	err := k.Settle(ctx)
	cancel()
	running.Wait()
	fmt.Println(k.Refused())
	return err
}

// Three portds in one namespace, each killed at random moments and started again, and an administrator who edits meanwhile: his
// entries are in every single read, and when all have stopped they are all that there is.
func TestKilled(t *testing.T) {
	dir := filepath.Dir(fresh(t, ""))
	lasts := 4 * time.Second
	if os.Getenv("PORTD_LONG") != "" {
		lasts = time.Minute
	}
	leases, why := canLease()
	if !leases {
		t.Logf("portd cannot keep an administrator from the sysctl for a moment here, so there is none: %v", why)
	}
	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()

	his := edits{t: t}
	var all sync.WaitGroup
	if leases {
		all.Go(func() {
			for ctx.Err() == nil {
				his.edit()
			}
		})
	}
	reads := 0
	all.Go(func() {
		for ; ctx.Err() == nil; reads++ {
			his.check()
		}
	})
	var kills [3]int
	for i := range kills {
		all.Go(func() {
			for ; ctx.Err() == nil; kills[i]++ {
				p := begin(t, filepath.Join(dir, fmt.Sprint(i)))
				if p == nil {
					return
				}
				time.Sleep(time.Duration(rand.IntN(100_000)) * time.Microsecond) // the random moment
				_ = p.Process.Kill()
				_ = p.Wait()
			}
		})
	}
	all.Wait()
	for i := range kills {
		if p := begin(t, filepath.Join(dir, fmt.Sprint(i))); p != nil {
			_ = p.Process.Signal(unix.SIGTERM)
			if err := p.Wait(); err != nil {
				t.Errorf("a keeper ended: %v", err)
			}
		}
	}
	want(t, his.text())
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	t.Logf("%d kills, %d edits, %d reads", kills, his.edited, reads)
	if reads == 0 || leases && his.edited == 0 || slices.Min(kills[:]) == 0 {
		t.Error("it proves nothing")
	}
}

func begin(t *testing.T, record string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", record)
	cmd.Env = append(os.Environ(), envAct+"=restless", "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = out.Read(make([]byte, 16))
	}
	if err != nil {
		t.Errorf("start a keeper: %v", err)
		return nil
	}
	return cmd
}

// edits are an administrator's, in ports below those that the keepers keep.
type edits struct {
	t      *testing.T
	edited int

	mu    sync.RWMutex // held while he writes
	ports map[int]bool
}

func (e *edits) text() string {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var ports []int
	for p := range e.ports {
		ports = append(ports, p)
	}
	slices.Sort(ports)
	return strings.Trim(strings.Join(strings.Fields(fmt.Sprint(ports)), ","), "[]")
}

// edit writes the sysctl anew, or what is in it with one more.
func (e *edits) edit() {
	e.mu.Lock()
	defer e.mu.Unlock()
	f, err := os.OpenFile(localports.Path, os.O_RDWR, 0)
	if err != nil {
		e.t.Error(err)
		return
	}
	defer f.Close()
	var text string
	more := 1000 + 2*rand.IntN(100) // no two of them adjacent
	if rand.IntN(3) == 0 {
		e.ports = map[int]bool{more: true, 80: true}
		text = fmt.Sprintf("80,%d", more)
	} else {
		buf := make([]byte, 1<<16)
		n, err := f.ReadAt(buf, 0)
		if n == 0 && err != nil && !errors.Is(err, os.ErrClosed) && err.Error() != "EOF" {
			e.t.Error(err)
			return
		}
		text = strings.Trim(fmt.Sprintf("%s,%d", strings.TrimSpace(string(buf[:n])), more), ",")
		if e.ports == nil {
			e.ports = map[int]bool{}
		}
		e.ports[more] = true
	}
	if _, err := f.WriteAt([]byte(text+"\n"), 0); err != nil {
		e.t.Error(err)
	}
	e.edited++
}

// check fails the test unless all of his entries are there.
func (e *edits) check() {
	e.mu.RLock()
	defer e.mu.RUnlock()
	text, err := readAll()
	if err != nil {
		e.t.Error(err)
		return
	}
	there := map[string]bool{}
	for entry := range strings.SplitSeq(text, ",") {
		there[entry] = true
	}
	for p := range e.ports {
		if !there[fmt.Sprint(p)] {
			e.t.Errorf("the administrator's %d is not among %s", p, text)
		}
	}
}

// await returns when the sysctl is text. The test's deadline is the bound.
func await(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); sysctl(t) != text; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the sysctl is %q, want %q", sysctl(t), text)
		}
	}
}

// canLease says whether this process may have a write lease on the sysctl (fcntl(2)).
func canLease() (bool, error) {
	f, err := os.OpenFile(localports.Path, os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	return err == nil || errors.Is(err, unix.EAGAIN), err
}
