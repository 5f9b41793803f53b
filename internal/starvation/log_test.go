package starvation_test

import (
	"bufio"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

const noises = 300

// noisy makes portd write more to its log than a pipe holds: each attachment is two lines.
func (p *process) noisy(t *testing.T) {
	t.Helper()
	c := p.Client(t)
	if _, err := reserve(t.Context(), c, "noisy"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Reservations.Listen(t.Context(), &pb.ListenRequest{Reservation: "noisy"}); err != nil {
		t.Fatal(err)
	}
	for i := range noises {
		a, err := client.Attach(within(t, 10*time.Second), client.AttachConfig{Socket: p.Handoff(), Wishes: []client.Wish{{Reference: "noisy", NotReady: true}}})
		if err != nil {
			t.Fatalf("attachment %d: %v", i+1, err)
		}
		a.Close()
	}
}

// Who should read portd's log has stopped: a journal that hangs, a terminal that was stopped by Ctrl-S.
func TestNobodyReadsTheLog(t *testing.T) {
	t.Parallel()
	p := prepare(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	p.Stderr = w
	p.begin(t)
	w.Close()
	p.noisy(t)
	p.rests(t)
	p.status(t, p.Client(t))

	// Somebody reads again, and has missed nothing.
	_ = r.SetReadDeadline(time.Now().Add(10 * time.Second))
	lines := bufio.NewScanner(r)
	for left := 0; left < noises; {
		if !lines.Scan() {
			t.Fatalf("the log tells of %d workers of %d that left: %v", left, noises, lines.Err())
		}
		if strings.Contains(lines.Text(), "worker left") {
			left++
		}
	}
	_ = r.SetReadDeadline(time.Time{})
	go io.Copy(io.Discard, r)
}

// Who read portd's log has gone.
func TestTheLogIsClosed(t *testing.T) {
	t.Parallel()
	p := prepare(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.Stderr = w
	p.begin(t)
	w.Close()
	r.Close()
	p.noisy(t)
	p.status(t, p.Client(t))
	p.rests(t)
}

// The log's disk is full, as is the limit of a file's size.
func TestTheLogsDiskIsFull(t *testing.T) {
	t.Parallel()
	p := prepare(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	p.Stderr = full
	p.begin(t)
	p.noisy(t)
	p.status(t, p.Client(t))
}
