package fdstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/nstest"
)

// A user may have only so many descriptors in messages. What is put then waits, and is kept as soon as there are fewer; nobody else waits for
// it, and the keeper stays.
func TestFull(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = nstest.As(t, 65533, 65533) // nobody else's, for it counts for the user
		file, err := os.Open(self)                   // it may lie where that user cannot look
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		cmd = &exec.Cmd{Path: "/proc/self/fd/3", Args: []string{self}, ExtraFiles: []*os.File{file}, SysProcAttr: cmd.SysProcAttr}
	}
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), envAct+"=full")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func full() error {
	const limit = 100
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
		return err
	}
	queue, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	var out fdpass.Sender
	for err == nil {
		err = out.Send(queue[0], []byte{0}, make([]int, 40)) // standard input, many times
	}
	if !errors.Is(err, unix.ETOOMANYREFS) {
		return fmt.Errorf("the messages took %d and more: %w", limit, err)
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	p := &peer{conn: ends[1], items: map[string]int{}, ended: make(chan struct{})}
	go p.run()
	var log bytes.Buffer
	s := fdstore.New(slog.New(slog.NewTextHandler(&log, nil)))
	lost := make(chan error, 1)
	s.OnLost(func(err error) { lost <- err })
	if err := s.Attach(ends[0], -1); err != nil {
		return err
	}
	began := time.Now()
	s.Put("a", 0)
	if took := time.Since(began); took < time.Second || took > 4*time.Second {
		return fmt.Errorf("the first waited for %v", took)
	}
	began = time.Now()
	for i := range 50 {
		s.Put(fmt.Sprint("b.", i), 0)
	}
	s.Remove("b.0")
	if took := time.Since(began); took > time.Second {
		return fmt.Errorf("the next waited for %v", took)
	}
	if s.Kept() {
		return errors.New("it says that all is kept")
	}
	if n := bytes.Count(log.Bytes(), []byte("not kept for now")); n != 1 {
		return fmt.Errorf("the log says so %d times: %s", n, &log)
	}
	_ = unix.Close(queue[0])
	_ = unix.Close(queue[1])
	for end := time.Now().Add(10 * time.Second); !s.Kept(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return errors.New("it is not kept though there is room")
		}
	}
	s.Settle(context.Background())
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.items) != 50 {
		return fmt.Errorf("the keeper has %d", len(p.items))
	}
	select {
	case err := <-lost:
		return fmt.Errorf("the keeper was given up: %w", err)
	default:
		return nil
	}
}

// TestRoom: how many descriptors a SEQPACKET pair takes before anybody reads.
func TestRoom(t *testing.T) {
	ends := socketpair(t)
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	var out fdpass.Sender
	n := 0
	for out.Send(ends[0], []byte("FDSTORE=1\nFDNAME=s.1\nFDPOLL=0"), []int{0}) == nil {
		n++
	}
	t.Logf("%d messages", n)
	if n < 100 || n > 10000 {
		t.Errorf("it takes %d messages", n)
	}
}
