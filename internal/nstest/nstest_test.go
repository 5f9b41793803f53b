package nstest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// envAct makes the test binary do one thing in place of its tests, where Main leaves it.
const envAct = "NSTEST_ACT"

type actor struct{ *testing.M }

func TestMain(m *testing.M) { Main(actor{m}) }

func (a actor) Run() int {
	switch act := os.Getenv(envAct); act {
	case "":
		return a.M.Run()
	case "exit":
		return 7
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "signal":
		got := make(chan os.Signal, 1)
		signal.Notify(got, syscall.SIGTERM)
		fmt.Println("ready")
		fmt.Println(<-got)
		return 5
	case "id":
		groups, err := os.Getgroups()
		fmt.Println(os.Getuid(), os.Getgid(), groups, err)
		return 0
	case "private":
		fmt.Println(Private(), errShared)
		return 0
	default:
		fmt.Fprintln(os.Stderr, "unknown act", act)
		return 2
	}
}

// self is this test binary as go test would start it: outside any namespace that Main made, as far as its environment tells.
func self(act string, args ...string) *exec.Cmd {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, envOuter+"=") })
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(env, envAct+"="+act, "GORACE=atexit_sleep_ms=0") // else each one takes a second to exit under -race
	cmd.Stderr = os.Stderr
	return cmd
}

func TestNamespaceIsOurs(t *testing.T) {
	Need(t)
	if here, err := os.Readlink("/proc/self/ns/net"); err != nil || here == os.Getenv(envOuter) {
		t.Fatalf("network namespace is %s (%v), the same as outside", here, err)
	}
	// A fixed low port on loopback, which must be up, and a setting that needs CAP_NET_ADMIN.
	for _, addr := range []string{"127.0.0.1:7", "[::1]:7"} {
		ln, err := net.Listen("tcp", addr)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Logf("%s: %v", addr, err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_reserved_ports", []byte("7-9\n"), 0); err != nil {
		t.Error(err)
	}
}

func TestUserStays(t *testing.T) {
	out, err := self("id").Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%d %d ", os.Getuid(), os.Getgid()); !strings.HasPrefix(string(out), want) {
		t.Errorf("inside it is %q, outside %q", out, want)
	}
}

func TestExit(t *testing.T) {
	for act, want := range map[string]string{
		"exit": "exit status 7",
		"kill": "signal: killed",
	} {
		if err := self(act).Run(); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", act, err, want)
		}
	}
}

func TestSignalIsPassedOn(t *testing.T) {
	cmd := self("signal")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("said %q (%v)", lines.Text(), lines.Err())
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if !lines.Scan() || lines.Text() != "terminated" {
		t.Errorf("got %q (%v)", lines.Text(), lines.Err())
	}
	if err := cmd.Wait(); err == nil || err.Error() != "exit status 5" {
		t.Error(err)
	}
}

// Whoever kills what it started must not leave the tests running behind it.
func TestKilledTogether(t *testing.T) {
	cmd := self("signal")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if line, err := bufio.NewReader(r).ReadString('\n'); line != "ready\n" {
		t.Fatalf("said %q (%v)", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	// The end of file comes when the last process with the pipe is gone; go test's timeout is the bound.
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
}

func TestOff(t *testing.T) {
	cmd := self("private")
	cmd.Env = append(cmd.Env, envOuter+"=off")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("false PORTD_NSTEST=off\n", string(out)); diff != "" {
		t.Error(diff)
	}
}

// A fuzz worker speaks over descriptors 3 and 4 and must find itself beside its coordinator.
func TestFuzzing(t *testing.T) {
	cmd := self("", "-test.run=^$", "-test.fuzz=^FuzzMaps$", "-test.fuzztime=20x", "-test.parallel=1",
		"-test.fuzzcachedir="+t.TempDir())
	cmd.Env = append(cmd.Env, fmt.Sprintf("NSTEST_WANT_PRIVATE=%v", Private()))
	cmd.Stderr = nil
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}

func FuzzMaps(f *testing.F) {
	f.Add(uint32(0), uint32(0), uint32(0))
	f.Add(uint32(0), ^uint32(0), uint32(65534))
	f.Add(uint32(1000), uint32(1), uint32(1000))
	f.Add(uint32(1000), uint32(1), uint32(1001))
	f.Add(^uint32(0), uint32(1), ^uint32(0))
	f.Fuzz(func(t *testing.T, first, count, id uint32) {
		if want := os.Getenv("NSTEST_WANT_PRIVATE"); want != "" && want != fmt.Sprint(Private()) {
			t.Fatalf("Private() = %v in a fuzz worker", Private())
		}
		want := id >= first && uint64(id) < uint64(first)+uint64(count)
		text := fmt.Sprintf("%10d %10d %10d\n", first, 0, count)
		if got := maps(text, id); got != want {
			t.Errorf("maps(%q, %d) = %v", text, id, got)
		}
		if maps("", id) || !maps(text+fmt.Sprintf("%d 5 1\n", id), id) {
			t.Errorf("%d: the second line does not count", id)
		}
	})
}

func TestAs(t *testing.T) {
	attr := As(t, 65534, 65533)
	cmd := self("id")
	cmd.Env = append(cmd.Env, envOuter+"="+os.Getenv(envOuter))
	cmd.SysProcAttr = attr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("65534 65533 [] <nil>\n", string(out)); diff != "" {
		t.Error(diff)
	}
}
