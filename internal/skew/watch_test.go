package skew_test

import (
	"bufio"
	"bytes"
	"os/exec"
	"sync"

	"google.golang.org/protobuf/encoding/protojson"

	pb "github.com/portd/portd/proto/portd/v1"
)

// A watch is a release's portctl that watches over everything that becomes of portd.
type watch struct {
	of     *release
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ended  chan struct{} // closed when it says no more

	mu       sync.Mutex
	revision int64 // of the last change
	changes  []int64
	err      error
}

// watch starts one, and returns when it watches.
func (s *stage) watch(r *release) {
	s.Helper()
	w := &watch{of: r, cmd: s.command(r, "portctl", "watch", "-o", "json"), ended: make(chan struct{})}
	w.cmd.Stderr = &w.stderr
	out, err := w.cmd.StdoutPipe()
	if err == nil {
		err = w.cmd.Start()
	}
	if err != nil {
		s.Fatal(err)
	}
	go w.read(bufio.NewScanner(out))
	s.Cleanup(func() {
		_ = w.cmd.Process.Kill()
		<-w.ended
		_ = w.cmd.Wait()
	})
	s.watches = append(s.watches, w)
	s.wait("watch that stands", func() bool { return w.at() > 0 })
}

func (w *watch) read(lines *bufio.Scanner) {
	defer close(w.ended)
	for lines.Scan() {
		var m pb.WatchReservationsResponse
		err := protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(lines.Bytes(), &m)
		w.mu.Lock()
		w.revision = m.GetRevision()
		if len(m.GetEvents()) > 0 {
			w.changes = append(w.changes, m.GetRevision())
		}
		w.err = err
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// at is the revision that it has come to.
func (w *watch) at() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.revision
}

// seen fails the test unless each watch has each change since its first one, once.
func (s *stage) seen(all everything) {
	s.Helper()
	last := all.History[len(all.History)-1].GetRevision()
	for _, w := range s.watches {
		s.wait("watch by the "+w.of.name+" portctl that comes to the last change", func() bool {
			select {
			case <-w.ended:
				return true
			default:
				return w.at() >= last
			}
		})
		w.mu.Lock()
		if w.err != nil || w.revision < last {
			s.Fatalf("the watch by the %v portctl ends at %d of %d: %v, %s", w.of, w.revision, last, w.err, w.stderr.String())
		}
		var want []int64
		for _, m := range all.History {
			if len(w.changes) > 0 && m.GetRevision() >= w.changes[0] {
				want = append(want, m.GetRevision())
			}
		}
		if len(w.changes) == 0 || len(want) != len(w.changes) {
			s.Errorf("a watch by the %v portctl has seen %d changes of %d", w.of, len(w.changes), len(want))
		}
		for i := range min(len(want), len(w.changes)) {
			if want[i] != w.changes[i] {
				s.Errorf("a watch by the %v portctl has seen %d where %d was to come", w.of, w.changes[i], want[i])
				break
			}
		}
		w.mu.Unlock()
	}
}
