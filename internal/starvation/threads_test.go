package starvation_test

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

// portd may start no thread any more: its user has as many processes as he may, or its cgroup as many tasks. Go ends a program that needs one
// and cannot have it, so portd has them before.
func TestNoThreads(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 { // who is not bound by the limit
		asNobody(t)
		return
	}
	p := prepare(t)
	p.begin(t)
	lift := p.limit(t, unix.RLIMIT_NPROC, 0)
	defer lift()
	var asking sync.WaitGroup
	for side := range 16 {
		c := p.Client(t)
		asking.Go(func() {
			for i := range 20 {
				name := fmt.Sprintf("r%d-%d", side, i)
				if _, err := reserve(within(t, 20*time.Second), c, name); err != nil {
					t.Errorf("reserve: %v", err)
					return
				}
				if _, err := c.Reservations.Listen(within(t, 20*time.Second), &pb.ListenRequest{Reservation: name}); err != nil {
					t.Errorf("listen: %v", err)
					return
				}
				if _, err := c.Ports.Whois(within(t, 20*time.Second), &pb.WhoisRequest{Query: &pb.WhoisRequest_Port{Port: 443}}); err != nil {
					t.Errorf("whois: %v", err)
				}
				a, err := client.Attach(within(t, 20*time.Second), client.AttachConfig{Socket: p.Handoff(), Wishes: []client.Wish{{Reference: name}}})
				if err != nil {
					t.Errorf("attach: %v", err)
					return
				}
				a.Close()
				if _, err := c.Reservations.Release(within(t, 20*time.Second), &pb.ReleaseRequest{Reservation: name}); err != nil {
					t.Errorf("release: %v", err)
					return
				}
			}
		})
	}
	asking.Wait()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.pid))
	t.Logf("%d threads (%v)", len(all), err)
	p.status(t, p.Client(t))
}
