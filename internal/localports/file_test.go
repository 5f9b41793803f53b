package localports_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/localports"
)

// What docs/KERNEL.md says of the file, by itself.

func openSysctl(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile(localports.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestTheFile(t *testing.T) {
	fresh(t, "22,80")
	f := openSysctl(t)
	write := func(text string, at int64) int {
		n, err := f.WriteAt([]byte(text), at)
		if n == 0 {
			t.Fatalf("write %.20q at %d: %v", text, at, err)
		}
		return n
	}
	write("81,7", 1)
	want(t, "7,22,80-81")
	write("443", 4000)
	want(t, "7,22,80-81,443")
	if _, err := f.WriteAt([]byte("8,65536"), 1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a write of 65536: %v", err)
	}
	want(t, "7,22,80-81,443") // nothing of it
	write("9", 0)
	want(t, "9")

	var long strings.Builder
	for port := 10001; long.Len() < 2*os.Getpagesize(); port += 2 {
		fmt.Fprintf(&long, "%d,", port)
	}
	raw := int(f.Fd())
	n, err := unix.Pwrite(raw, []byte(long.String()), 1)
	if err != nil || n >= os.Getpagesize() {
		t.Errorf("one write takes %d of %d bytes, %v; a page is %d", n, long.Len(), err, os.Getpagesize())
	}
	part := make([]byte, 512)
	first, err := unix.Pread(raw, part, 0)
	if err != nil {
		t.Fatal(err)
	}
	if more, err := unix.Pread(raw, part, int64(first)); more != 0 || err != nil {
		t.Errorf("after %d bytes a read goes on with %d, %v", first, more, err)
	}
}

// While a write lease is on the file nobody else opens it, not even to read; and there is none while somebody has it open.
func TestTheFileCanBeLeased(t *testing.T) {
	fresh(t, "22")
	if leases, err := canLease(); !leases {
		t.Skipf("needs write leases on files of the namespace's owner: %v", err)
	}
	f, other := openSysctl(t), openSysctl(t)
	lease := func(typ int) error {
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, typ)
		return err
	}
	if err := lease(unix.F_WRLCK); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a lease while another has the file open: %v, want EAGAIN", err)
	}
	other.Close()
	if err := lease(unix.F_WRLCK); err != nil {
		t.Fatal(err)
	}
	if fd, err := unix.Open(localports.Path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); !errors.Is(err, unix.EAGAIN) {
		unix.Close(fd)
		t.Errorf("open without waiting: %v, want EAGAIN", err)
	}
	text := make(chan string)
	go func() {
		got, err := readAll()
		text <- fmt.Sprint(got, err)
	}()
	select {
	case got := <-text:
		t.Errorf("another read %s", got)
	case <-time.After(100 * time.Millisecond): // it waits, or has not come to it yet
	}
	if _, err := f.WriteAt([]byte("80\n"), 0); err != nil {
		t.Error(err)
	}
	if err := lease(unix.F_UNLCK); err != nil {
		t.Fatal(err)
	}
	if got := <-text; got != "80<nil>" {
		t.Errorf("then it read %s", got)
	}
}
