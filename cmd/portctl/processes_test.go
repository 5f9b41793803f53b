package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// What a script starts in the background:
//
//	start NAME REGEXP COMMAND ARGS…   starts it and waits until its output matches
//	expect NAME REGEXP                waits until its output matches
//	signal NAME TERM                  sends it a signal
//	ended NAME CODE                   waits until it ends, with this code or by this signal

// processes are those of one script, by name.
type processes map[string]*background

// A background process's output is both standard ones, in the order of writing.
type background struct {
	cmd *exec.Cmd

	mu      sync.Mutex
	output  bytes.Buffer
	changed chan struct{} // closed and replaced when output has grown
	ended   chan struct{} // closed when the process has ended and all output is there
}

func (b *background) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.changed)
	b.changed = make(chan struct{})
	return b.output.Write(p)
}

const patience = 20 * time.Second

// expect waits for output that matches.
func (b *background) expect(ts *testscript.TestScript, pattern string) {
	re, err := regexp.Compile(`(?m)` + pattern)
	ts.Check(err)
	deadline := time.After(patience)
	for {
		b.mu.Lock()
		text, changed := b.output.String(), b.changed
		b.mu.Unlock()
		if re.MatchString(text) {
			return
		}
		select {
		case <-changed:
		case <-b.ended:
			if b.mu.Lock(); b.output.String() == text {
				b.mu.Unlock()
				ts.Fatalf("it ended, and %q is not in its output:\n%s", pattern, text)
			}
			b.mu.Unlock()
		case <-deadline:
			ts.Fatalf("%q is not in its output:\n%s", pattern, text)
		}
	}
}

// end kills what a script has left, portd last.
func (all processes) end() {
	for _, portd := range []bool{false, true} {
		for name, b := range all {
			if portd == (name == "portd") {
				_ = unix.Kill(-b.cmd.Process.Pid, unix.SIGKILL)
				<-b.ended
			}
		}
	}
}

// processesKey is where testscript keeps them for a script.
type processesKey struct{}

func processesOf(ts *testscript.TestScript) processes { return ts.Value(processesKey{}).(processes) }

func (all processes) get(ts *testscript.TestScript, name string) *background {
	b := all[name]
	if b == nil {
		ts.Fatalf("%s was not started", name)
	}
	return b
}

func startCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: start NAME REGEXP COMMAND ARGS…")
	}
	b := &background{changed: make(chan struct{}), ended: make(chan struct{})}
	// The script's own PATH begins with the directory of its commands.
	path := filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], args[2])
	if found, err := exec.LookPath(args[2]); err == nil {
		path = found // a program of the host
	}
	b.cmd = exec.Command(path, args[3:]...)
	// Not exec's own pipe: that is closed a while after the program ended, and the portd that has taken over from it writes to it still.
	output, write, err := os.Pipe()
	ts.Check(err)
	b.cmd.Dir, b.cmd.Stdout, b.cmd.Stderr = ts.MkAbs("."), write, write
	for _, name := range []string{"PATH", "WORK", "HOME", "PORTD_SOCKET", "GORACE"} {
		b.cmd.Env = append(b.cmd.Env, name+"="+ts.Getenv(name))
	}
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // end kills what it has started, too
	err = b.cmd.Start()
	_ = write.Close()
	ts.Check(err)
	processesOf(ts)[args[0]] = b
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer output.Close()
		_, _ = io.Copy(b, output)
	}()
	go func() {
		_ = b.cmd.Wait()
		select {
		case <-read:
		case <-time.After(time.Second): // a child that outlives it keeps its output
		}
		close(b.ended)
	}()
	b.expect(ts, args[1])
}

func expectCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: expect NAME REGEXP")
	}
	processesOf(ts).get(ts, args[0]).expect(ts, args[1])
}

func signalCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: signal NAME SIGNAL")
	}
	sig := unix.SignalNum("SIG" + args[1])
	if sig == 0 {
		ts.Fatalf("%s is no signal", args[1])
	}
	ts.Check(processesOf(ts).get(ts, args[0]).cmd.Process.Signal(sig))
}

func endedCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: ended NAME CODE|SIGNAL")
	}
	b := processesOf(ts).get(ts, args[0])
	select {
	case <-b.ended:
	case <-time.After(patience):
		ts.Fatalf("%s does not end", args[0])
	}
	ws := b.cmd.ProcessState.Sys().(syscall.WaitStatus)
	got := strconv.Itoa(ws.ExitStatus())
	if ws.Signaled() {
		got = unix.SignalName(ws.Signal())[len("SIG"):]
	}
	delete(processesOf(ts), args[0])
	ts.Logf("%s", b.output.String())
	if got != args[1] {
		ts.Fatalf("%s ended with %s, not %s", args[0], got, args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".out"), b.output.Bytes(), 0o600))
}
