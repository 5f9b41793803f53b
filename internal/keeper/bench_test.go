package keeper_test

import (
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdstore"
)

// attach is a Store with a real keeper, of this process.
func attach(b *testing.B) *fdstore.Store {
	b.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		b.Fatal(err)
	}
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "PORTD_ROLE=keeper", "PORTD_KEEPER_OF="+strconv.Itoa(os.Getpid()))
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(ends[1]), "theirs"), os.NewFile(uintptr(self), "pidfd")}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	s := fdstore.New(nil)
	if err := s.Attach(ends[0], -1); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		s.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	s.Settle(b.Context())
	return s
}

// BenchmarkPut is a descriptor put and removed again.
func BenchmarkPut(b *testing.B) {
	s := attach(b)
	for b.Loop() {
		s.Put("s.1", 0)
		s.Remove("s.1")
	}
}

func BenchmarkSettle(b *testing.B) {
	s := attach(b)
	for b.Loop() {
		s.Settle(b.Context())
	}
}

func BenchmarkSettleManyAtOnce(b *testing.B) {
	s := attach(b)
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			s.Settle(b.Context())
		}
	})
}
