package fdpass_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/nstest"
	"golang.org/x/sys/unix"
)

func connPair(t *testing.T, kind int) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		conns[i] = c.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

func TestConn(t *testing.T) {
	nstest.Descriptors(t)
	a, b := connPair(t, unix.SOCK_SEQPACKET)
	sent := files(t, fdpass.MaxFDs)
	errs := make(chan error, 1)
	go func() { errs <- fdpass.SendConn(a, []byte("hello"), sent) }()
	buf := make([]byte, 64)
	n, got, err := fdpass.RecvConn(b, buf)
	defer closeAll(got)
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	if err != nil || string(buf[:n]) != "hello" {
		t.Fatalf("received %q, %v", buf[:n], err)
	}
	if diff := cmp.Diff(inodes(t, sent), inodes(t, got)); diff != "" {
		t.Error(diff)
	}

	if err := fdpass.SendConn(a, []byte("longer than that"), nil); err != nil {
		t.Fatal(err)
	}
	if n, _, err := fdpass.RecvConn(b, buf[:4]); !errors.Is(err, fdpass.ErrPayloadTruncated) || string(buf[:n]) != "long" {
		t.Errorf("received %q, %v", buf[:n], err)
	}
	a.Close()
	if _, _, err := fdpass.RecvConn(b, buf); err != io.EOF {
		t.Errorf("the other end is closed: %v", err)
	}
	if err := fdpass.SendConn(b, buf, nil); !errors.Is(err, unix.EPIPE) {
		t.Errorf("the other end is closed: %v", err)
	}
	if err := fdpass.SendConn(a, buf, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("our end is closed: %v", err)
	}
	if _, _, err := fdpass.RecvConn(a, buf); !errors.Is(err, net.ErrClosed) {
		t.Errorf("our end is closed: %v", err)
	}
}

func TestConnDeadline(t *testing.T) {
	a, b := connPair(t, unix.SOCK_SEQPACKET)
	if err := b.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := fdpass.RecvConn(b, make([]byte, 8)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("nothing comes: %v", err)
	}
	// The queue fills up, and nobody takes anything out.
	if err := a.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var err error
	for err == nil {
		err = fdpass.SendConn(a, make([]byte, 4096), nil)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("no room: %v", err)
	}
}

func TestConnStreamSendsAll(t *testing.T) {
	nstest.Descriptors(t)
	a, b := connPair(t, unix.SOCK_STREAM)
	payload := bytes.Repeat([]byte("0123456789abcdef"), 256<<10)
	sent := files(t, 2)
	errs := make(chan error, 1)
	go func() { errs <- fdpass.SendConn(a, payload, sent); a.Close() }()
	var received []byte
	var fds []int
	defer func() { closeAll(fds) }()
	buf := make([]byte, 64<<10)
	for {
		n, got, err := fdpass.RecvConn(b, buf)
		received, fds = append(received, buf[:n]...), append(fds, got...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(received, payload) {
		t.Errorf("%d bytes of %d, or other ones", len(received), len(payload))
	}
	if diff := cmp.Diff(inodes(t, sent), inodes(t, fds)); diff != "" {
		t.Error(diff)
	}
}
