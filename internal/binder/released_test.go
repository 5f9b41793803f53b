package binder_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/registry"
)

// Who is at a door while its port is released does nothing to the descriptor that takes the number of the old one.
func TestReleaseAtTheDoor(t *testing.T) {
	b := open(t, binder.Config{})
	dir := pathDir(t, 0o755)
	for range 200 {
		path := filepath.Join(dir, "s")
		key := registry.SocketKey{Reservation: path}
		if err := bindPath(t, b, path, me(), 0); err != nil {
			t.Fatal(err)
		}
		if err := b.Listen(t.Context(), key, registry.ListenOptions{}); err != nil {
			t.Fatal(err)
		}
		var doorman sync.WaitGroup
		begun := make(chan struct{})
		doorman.Go(func() {
			close(begun)
			if _, err := b.Refuse(key); err != nil {
				t.Errorf("refuse: %v", err)
			}
		})
		<-begun
		if err := b.Release(key); err != nil {
			t.Fatal(err)
		}
		// Whatever number the socket had, a pipe has it now.
		var pipes [8][2]int
		for i := range pipes {
			if err := unix.Pipe2(pipes[i][:], unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
		}
		doorman.Wait()
		for _, p := range pipes {
			for _, fd := range p {
				var st unix.Stat_t
				if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
					t.Fatalf("descriptor %d is no pipe any more: mode %#o, %v", fd, st.Mode, err)
				}
				unix.Close(fd)
			}
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Fatalf("the file is there after the release: %v", err)
		}
	}
}

// releaser releases a port while it is being closed.
type releaser struct {
	observer
	release func()
}

func (r *releaser) Closing(registry.SocketKey) {
	if release := r.release; release != nil {
		r.release = nil
		release()
	}
}

// A port that is released while somebody has its sockets in use leaves nothing among what may be parked: that would be others' descriptors.
func TestReleaseInUse(t *testing.T) {
	needMessages(t)
	seen := new(releaser)
	b := open(t, binder.Config{Spare: 50, Observer: seen})
	limit(t, 300)
	ep := at(t, "tcp/1", port())
	hold(t, b, ep)
	listen(t, b, ep)
	seen.release = func() {
		if err := b.Release(key(ep)); err != nil {
			t.Error(err)
		}
	}
	if err := b.Unlisten(key(ep)); err != nil {
		t.Errorf("stop listening on what is being released: %v", err)
	}
	var pipe [2]int // has the number by now
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[1])
	defer unix.Close(pipe[0])
	first := ports(400)
	for p := first; p < first+400; p++ {
		hold(t, b, at(t, "tcp/1", p))
	}
	for _, fd := range pipe {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			t.Errorf("descriptor %d is no pipe any more: mode %#o, %v", fd, st.Mode, err)
		}
	}
}
