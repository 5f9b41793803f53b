package localports_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/localports"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
)

// envAct makes the test binary a keeper in a process of its own, which can be killed.
const envAct = "LOCALPORTS_TEST_ACT"

type actor struct{ *testing.M }

func TestMain(m *testing.M) { nstest.Main(actor{m}) }

func (a actor) Run() int {
	acts := map[string]func([]string) error{"restless": restless, "refused": refused}
	act := acts[os.Getenv(envAct)]
	if act == nil {
		return a.M.Run()
	}
	if err := act(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// administrator writes the sysctl as one does, in place of what was there.
func administrator(t testing.TB, text string) {
	t.Helper()
	if err := os.WriteFile(localports.Path, []byte(text+"\n"), 0); err != nil {
		t.Fatal(err)
	}
}

func sysctl(t testing.TB) string {
	t.Helper()
	text, err := readAll()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// readAll reads with one large buffer: where a read ends before the text does, the kernel gives no more.
func readAll() (string, error) {
	f, err := os.Open(localports.Path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	n, err := unix.Read(int(f.Fd()), buf)
	return strings.TrimSpace(string(buf[:max(n, 0)])), err
}

func want(t testing.TB, text string) {
	t.Helper()
	if got := sysctl(t); got != text {
		t.Errorf("the sysctl is %q, want %q", got, text)
	}
}

// A keeper is a localports.Keeper at work.
type keeper struct {
	*localports.Keeper
	stop func() // returns when it has given back what it had added; may be called again
}

// start starts a keeper with a record, for a test that has the sysctl to itself.
func start(t testing.TB, record string) keeper {
	t.Helper()
	k := localports.New(localports.Config{
		Record: record, BootID: "boot", Netns: "netns", Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err := k.Refused(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	stop := func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		ended <- nil
	}
	t.Cleanup(stop)
	return keeper{k, stop}
}

func fresh(t testing.TB, administrators string) (record string) {
	t.Helper()
	nstest.Need(t)
	administrator(t, administrators)
	return filepath.Join(t.TempDir(), "record")
}

func (k keeper) keep(t testing.TB, first, last uint16) {
	t.Helper()
	k.Keep(registry.PortRange{First: first, Last: last})
	k.settle(t)
}

func (k keeper) letGo(t testing.TB, first, last uint16) {
	t.Helper()
	k.LetGo(registry.PortRange{First: first, Last: last})
	k.settle(t)
}

func (k keeper) settle(t testing.TB) {
	t.Helper()
	if err := k.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
}
