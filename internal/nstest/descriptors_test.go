package nstest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// recorder stands in for the test that leaks: what it reports must not fail this one.
type recorder struct {
	testing.TB
	cleanup  func()
	failures []string
}

func (r *recorder) Helper()          {}
func (r *recorder) Cleanup(f func()) { r.cleanup = f }
func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func TestDescriptors(t *testing.T) {
	tests := []struct {
		name string
		open func() (shut func(), err error)
	}{
		{"socket:[", func() (func(), error) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			return func() { ln.Close() }, err
		}},
		{"pipe:[", func() (func(), error) {
			r, w, err := os.Pipe()
			return func() { r.Close(); w.Close() }, err
		}},
		{"anon_inode:[pidfd]", func() (func(), error) {
			fd, err := unix.PidfdOpen(os.Getpid(), 0)
			return func() { unix.Close(fd) }, err
		}},
		{"kept.txt", func() (func(), error) {
			f, err := os.Create(filepath.Join(t.TempDir(), "kept.txt"))
			return func() { f.Close() }, err
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leaky := &recorder{TB: t}
			descriptors(leaky, 0)
			shut, err := tt.open()
			if err != nil {
				t.Fatal(err)
			}
			leaky.cleanup()
			if len(leaky.failures) != 1 || !strings.Contains(leaky.failures[0], tt.name) {
				t.Errorf("left open: reported %q", leaky.failures)
			}
			shut()

			late := &recorder{TB: t}
			descriptors(late, time.Minute)
			shut, err = tt.open()
			if err != nil {
				t.Fatal(err)
			}
			go shut()
			late.cleanup()
			if len(late.failures) != 0 {
				t.Errorf("closed late: reported %q", late.failures)
			}
		})
	}
}
