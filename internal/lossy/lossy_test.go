package lossy_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/lossy"
)

// What waits for a reader is bounded, and who reads at last is told of the rest: each line is either read or counted.
func TestNobodyReads(t *testing.T) {
	r, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var w *lossy.Writer
	w = lossy.New(to, func(n int) { fmt.Fprintln(w, "lost", n) })
	line := strings.Repeat("x", 99) + "\n"
	const written = 30_000
	for range written {
		if n, err := io.WriteString(w, line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	read, lost := 0, 0
	for in := bufio.NewScanner(r); read+lost < written; {
		if !in.Scan() {
			t.Fatalf("%d lines read and %d lost of %d: %v", read, lost, written, in.Err())
		}
		var n int
		if _, err := fmt.Sscanf(in.Text(), "lost %d", &n); err == nil {
			lost += n
		} else {
			read++
		}
	}
	if lost == 0 || read < 5000 || read+lost != written {
		t.Errorf("%d read, %d lost", read, lost)
	}
	go io.Copy(io.Discard, r)
	w.Close(10 * time.Second)
	to.Close()
}

// Lines come out whole, in order, also the last ones before Close; and after it nothing is taken.
func TestClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := lossy.New(f, func(n int) { t.Errorf("%d lines lost", n) })
	var want strings.Builder
	for i := range 1000 {
		fmt.Fprintln(&want, i)
		fmt.Fprintln(w, i)
	}
	w.Close(10 * time.Second)
	w.Close(10 * time.Second)
	fmt.Fprintln(w, "late")
	if got, err := os.ReadFile(path); err != nil || string(got) != want.String() {
		t.Errorf("%d bytes of %d (%v)", len(got), want.Len(), err)
	}
}

// Close does not wait longer than it may where nobody reads.
func TestCloseAmongTheDeaf(t *testing.T) {
	r, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	defer r.Close()
	w := lossy.New(to, func(int) {})
	for range 100 {
		fmt.Fprintln(w, strings.Repeat("x", 4095))
	}
	began := time.Now()
	w.Close(20 * time.Millisecond)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A writer that fails loses what it fails with, and is not asked in a circle.
func TestFails(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	to := &either{File: full, tried: make(chan struct{}, 100)}
	var w *lossy.Writer
	w = lossy.New(to, func(n int) { fmt.Fprintln(w, "lost", n) })
	fmt.Fprintln(w, "one")
	<-to.tried
	if err := unix.Dup3(int(f.Fd()), int(full.Fd()), unix.O_CLOEXEC); err != nil { // there is room again
		t.Fatal(err)
	}
	fmt.Fprintln(w, "two")
	<-to.tried
	<-to.tried
	w.Close(10 * time.Second)
	full.Close()
	if got, err := os.ReadFile(path); err != nil || string(got) != "two\nlost 1\n" {
		t.Errorf("%q, %v", got, err)
	}
	if n := len(to.tried); n > 0 {
		t.Errorf("%d more writes", n)
	}
}

// either is a file that tells of each write.
type either struct {
	*os.File
	tried chan struct{}
}

func (e *either) Write(p []byte) (int, error) {
	n, err := e.File.Write(p)
	e.tried <- struct{}{}
	return n, err
}
