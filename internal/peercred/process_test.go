package peercred_test

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/peercred"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// openers are the two ways to a peer's pidfd; which one PIDFD takes is up to the kernel.
var openers = map[string]func(syscall.Conn) (*peercred.Process, error){
	"Open": peercred.Open,
	"by number": func(conn syscall.Conn) (*peercred.Process, error) {
		fd, err := peercred.ByNumber(conn)
		if err != nil {
			return nil, err
		}
		return peercred.NewProcess(fd)
	},
}

// The connection stays open in a child's hands, but the peer is gone, and that is what Done tells.
func TestDoneOnExit(t *testing.T) {
	for name, open := range openers {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			nstest.Descriptors(t)
			p := meet(t, "unixpacket", "stay", nil)
			proc, err := open(p.conn)
			if err != nil {
				t.Fatal(err)
			}
			defer proc.Close()
			select {
			case <-proc.Done():
				t.Fatal("done before the exit")
			default:
			}
			if err := p.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := proc.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			<-proc.Done()
			// Not reaped until now.
			if err := p.cmd.Wait(); err == nil {
				t.Error("it exited by itself")
			}
		})
	}
}

func TestDoneWhileChildKeepsConnection(t *testing.T) {
	p := meet(t, "unix", "bequeath", nil)
	proc, err := peercred.Open(p.conn)
	if errors.Is(err, unix.ESRCH) {
		t.Skip("needs a kernel that gives the pidfd of a peer that was reaped")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	if err := proc.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Nothing to read and no end of file: the connection is still open.
	if err := p.conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read: %v", err)
	}
	p.leave.Close()
	if err := p.conn.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read after the child left: %v", err)
	}
}

func TestOpenAfterReaped(t *testing.T) {
	p := meet(t, "unix", "stay", nil)
	p.leave.Close()
	if err := p.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	proc, err := peercred.Open(p.conn)
	if errors.Is(err, unix.ESRCH) {
		return // what older kernels answer
	}
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	<-proc.Done()
	if fd, err := peercred.ByNumber(p.conn); !errors.Is(err, unix.ESRCH) {
		unix.Close(fd)
		t.Errorf("by number: %v, want ESRCH", err)
	}
}

func TestClose(t *testing.T) {
	nstest.Descriptors(t)
	p := meet(t, "unix", "stay", nil)
	before := goleak.IgnoreCurrent()
	proc, err := peercred.Open(p.conn)
	if err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := proc.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait with a cancelled context: %v", err)
	}

	waited := make(chan error, 1)
	go func() { waited <- proc.Wait(context.Background()) }()
	if err := proc.Close(); err != nil {
		t.Error(err)
	}
	if err := <-waited; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wait across Close: %v", err)
	}
	goleak.VerifyNone(t, before)
	select {
	case <-proc.Done():
		t.Error("Close looks like an exit")
	default:
	}
	if err := proc.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

func TestNewProcessOfNoProcess(t *testing.T) {
	nstest.Descriptors(t)
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	// The netpoller takes no regular files; the descriptor must be gone all the same, which Descriptors checks.
	if p, err := peercred.NewProcess(fd); err == nil {
		p.Close()
		t.Error("watches a regular file")
	}
}
