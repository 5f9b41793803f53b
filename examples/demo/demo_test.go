package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/portd/portd/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// build makes the demo and what it shows, as make demo does but for flags that would have every package compiled anew, and returns
// the directory they are in.
func build(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", bin+"/", "../../cmd/portd", "../../cmd/portctl", "../http-worker", ".")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, text)
	}
	return bin
}

// demo is the demo to be run with this $PATH, and the directory that it must leave empty. No home and no other variables: it needs
// none.
func demo(t *testing.T, bin, path string) (*exec.Cmd, string) {
	t.Helper()
	tmp, err := os.MkdirTemp("", "d")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	cmd := exec.Command(filepath.Join(bin, "demo"))
	cmd.Env = []string{"PATH=" + path, "TMPDIR=" + tmp}
	return cmd, tmp
}

func empty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDemo(t *testing.T) {
	bin := build(t)

	t.Run("as told", func(t *testing.T) {
		t.Parallel()
		cmd, tmp := demo(t, bin, bin)
		text, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		if len(lines) > 48 {
			t.Errorf("%d lines are more than a screenful", len(lines))
		}
		for _, line := range lines {
			if utf8.RuneCountInString(line) > 100 {
				t.Errorf("too wide: %s", line)
			}
		}
		empty(t, tmp)
		t.Logf("\n%s", text)
	})

	t.Run("a program is missing", func(t *testing.T) {
		t.Parallel()
		some := t.TempDir()
		for _, name := range []string{"portd", "portctl"} {
			if err := os.Symlink(filepath.Join(bin, name), filepath.Join(some, name)); err != nil {
				t.Fatal(err)
			}
		}
		cmd, tmp := demo(t, bin, some)
		fails(t, cmd, `"The kernel holds it`)
		empty(t, tmp)
	})

	t.Run("a program does nothing", func(t *testing.T) {
		t.Parallel()
		idle, err := exec.LookPath("true")
		if err != nil {
			t.Skip("needs true(1)")
		}
		fake := t.TempDir()
		if err := os.Symlink(idle, filepath.Join(fake, "portctl")); err != nil {
			t.Fatal(err)
		}
		cmd, tmp := demo(t, bin, fake+":"+bin)
		fails(t, cmd, "443 is not known")
		empty(t, tmp)
	})

	t.Run("interrupted", func(t *testing.T) {
		t.Parallel()
		cmd, tmp := demo(t, bin, bin)
		out := &interrupter{cmd: cmd, at: "http-worker tcp/"}
		cmd.Stdout, cmd.Stderr = out, out
		err := cmd.Run()
		if !exitedWith(err, 1) || !strings.Contains(out.text.String(), "interrupted") {
			t.Errorf("%v\n%s", err, out.text.String())
		}
		empty(t, tmp)
	})
}

// fails runs the demo, which must say why it fails.
func fails(t *testing.T, cmd *exec.Cmd, why string) {
	t.Helper()
	text, err := cmd.CombinedOutput()
	if !exitedWith(err, 1) || !strings.Contains(string(text), why) {
		t.Errorf("%v, want exit status 1 and %q in:\n%s", err, why, text)
	}
}

func exitedWith(err error, code int) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() == code
}

// An interrupter sends SIGINT to the command whose output it takes when that has come to some text.
type interrupter struct {
	text bytes.Buffer
	cmd  *exec.Cmd
	at   string
}

func (i *interrupter) Write(p []byte) (int, error) {
	n, err := i.text.Write(p)
	if i.at != "" && strings.Contains(i.text.String(), i.at) {
		i.at = ""
		if sent := i.cmd.Process.Signal(syscall.SIGINT); sent != nil {
			return n, sent
		}
	}
	return n, err
}
