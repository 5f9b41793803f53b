package starvation_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/portd/portd/proto/portd/v1"
)

// A worker is stopped while clients come. What it was sent waits for it, all others are another worker's at once, and portd has
// nothing to do meanwhile.
func TestStoppedWorker(t *testing.T) {
	t.Parallel()
	for name, after := range map[string]time.Duration{"waits": 0, "taken back": 200 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			p := prepare(t).begin(t)
			c := p.Client(t)
			opt := &pb.ListenOptions{}
			if after > 0 {
				opt.Handoff = &pb.HandoffOptions{TakeBackAfter: durationpb.New(after)}
			}
			addr := listens(t, c, "web", opt)
			stopped := p.serve(t, "web", "stopped")
			wantAnswers(t, visit(t, addr, 1))
			stop(t, stopped.Process.Pid)
			his := visit(t, addr, 3)
			p.rests(t)
			p.serve(t, "web", "other")
			later := visit(t, addr, 50)
			p.rests(t)
			if after > 0 {
				if by := wantAnswers(t, append(his, later...)); by["other"] != len(his)+len(later) {
					t.Errorf("served by %v", by)
				}
				return
			}
			if err := stopped.Process.Signal(unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
			if by := wantAnswers(t, append(his, later...)); by["other"] == 0 {
				t.Errorf("served by %v", by)
			}
		})
	}
}

// Nobody takes connections, and more come than any queue holds.
func TestFullBacklog(t *testing.T) {
	t.Parallel()
	p := prepare(t).begin(t)
	addr := listens(t, p.Client(t), "web", &pb.ListenOptions{Backlog: 64})
	stopped := p.serve(t, "web", "stopped")
	wantAnswers(t, visit(t, addr, 1))
	stop(t, stopped.Process.Pid)
	waiting := visit(t, addr, 60)
	p.rests(t)
	if err := stopped.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	wantAnswers(t, waiting)
}
