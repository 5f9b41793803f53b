package systemd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A load is clients that connect one after another, each of which must get back what it sends.
type load struct {
	stop chan struct{}
	wg   sync.WaitGroup

	mu                            sync.Mutex
	served, refused, reset, other int
	err                           error // the last of other
	last                          time.Time
	pause                         time.Duration // the longest without a success
}

// load begins that, in the machine's network namespace.
func (m *machine) load(t *testing.T, address string) *load {
	t.Helper()
	l := &load{stop: make(chan struct{}), last: time.Now()}
	for range 4 {
		l.wg.Go(func() {
			m.inside(t, func() {
				for {
					select {
					case <-l.stop:
						return
					default:
						l.count(echo(address))
					}
				}
			})
		})
	}
	t.Cleanup(l.end)
	return l
}

// inside runs f on a thread in the machine's network namespace, and waits for it.
func (m *machine) inside(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", m.pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.wg.Wait()
}

func (l *load) count(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.served++
		now := time.Now()
		l.pause, l.last = max(l.pause, now.Sub(l.last)), now
	case errors.Is(err, unix.ECONNREFUSED):
		l.refused++
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, io.EOF):
		l.reset++
	default:
		l.other++
		l.err = err
	}
}

// take returns what there was since the last take.
func (l *load) take() (served, refused, reset, other int, pause time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	served, refused, reset, other, pause, err = l.served, l.refused, l.reset, l.other, l.pause, l.err
	l.served, l.refused, l.reset, l.other, l.pause, l.err = 0, 0, 0, 0, 0, nil
	return served, refused, reset, other, pause, err
}

// more waits until that many more clients have been served.
func (l *load) more(t *testing.T, n int) {
	t.Helper()
	count := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.served
	}
	want := count() + n
	for until := time.Now().Add(20 * time.Second); count() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("clients are not served")
		}
	}
}

// check fails the test where a client noticed anything.
func (l *load) check(t *testing.T) {
	t.Helper()
	served, refused, reset, other, pause, err := l.take()
	t.Logf("%d served, %d refused, %d reset, longest pause %v", served, refused, reset, pause.Round(time.Millisecond))
	if refused > 0 || reset > 0 || other > 0 || served == 0 {
		t.Errorf("%d refused, %d reset, %d others, such as %v", refused, reset, other, err)
	}
}

func echo(address string) error {
	conn, err := net.DialTimeout("tcp4", address, 20*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		return err
	}
	back := make([]byte, 6)
	if _, err := io.ReadFull(conn, back); err != nil {
		return err
	}
	if string(back) != "hello\n" {
		return fmt.Errorf("got back %q: %w", back, os.ErrInvalid)
	}
	return nil
}
