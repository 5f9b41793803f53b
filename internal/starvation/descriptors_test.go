package starvation_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

// fill takes all descriptors that portd may have, by a limit that leaves some and by connections that are idle. It returns what lifts
// the limit.
func (p *process) fill(t *testing.T) (lift func()) {
	t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	most := 0
	for _, e := range all {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, n+1) // descriptors are numbers below the limit
	}
	lift = p.limit(t, unix.RLIMIT_NOFILE, uint64(most))
	for range most - len(all) {
		c, err := net.DialTimeout("unix", p.Socket, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := errors.Join(second(io.WriteString(c, http2.ClientPreface)), http2.NewFramer(c, nil).WriteSettings()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "no descriptor is left", func() bool { return p.open(t) >= most })
	return lift
}

func second(_ int, err error) error { return err }

// Not one descriptor is left, with clients and workers at the doors.
func TestNoDescriptors(t *testing.T) {
	t.Parallel()
	p := prepare(t).begin(t)
	c := p.Client(t)
	addr := listens(t, c, "web", nil)
	p.serve(t, "web", "first")
	wantAnswers(t, visit(t, addr, 3))
	if _, err := reserve(t.Context(), c, "spare"); err != nil {
		t.Fatal(err)
	}

	lift := p.fill(t)
	defer lift()
	waiting := visit(t, addr, 20)
	attached := make(chan error, 1)
	go func() {
		a, err := client.Attach(t.Context(), client.AttachConfig{Socket: p.Handoff(), Wishes: []client.Wish{{Reference: "web", NotReady: true}}})
		if err == nil {
			a.Close()
		}
		attached <- err
	}()
	p.rests(t)

	t.Run("who has a connection is answered", func(t *testing.T) {
		if st := p.status(t, c); st.GetReservations() != 2 {
			t.Errorf("status says %v", st)
		}
		if _, err := c.Reservations.ListReservations(within(t, 5*time.Second), &pb.ListReservationsRequest{}); err != nil {
			t.Error(err)
		}
		if _, err := c.Reservations.Release(within(t, 5*time.Second), &pb.ReleaseRequest{Reservation: "spare"}); err != nil {
			t.Error(err)
		}
	})
	t.Run("as far as portd knows", func(t *testing.T) {
		got, err := c.Ports.Whois(within(t, 5*time.Second), &pb.WhoisRequest{Query: &pb.WhoisRequest_Port{Port: 443}})
		if err != nil || len(got.GetLookup().GetEntries()) == 0 || !strings.Contains(strings.Join(got.GetHidden(), "\n"), "RLIMIT_NOFILE") {
			t.Errorf("whois: %v, %v", got, err)
		}
	})
	t.Run("or told what is missing", func(t *testing.T) {
		calls := map[string]func() error{
			"reserve": func() error {
				_, err := reserve(within(t, 5*time.Second), c, "more")
				return err
			},
			"reserve a path": func() error {
				ep, err := client.ParseSpec("unix/" + p.Daemon.Dir + "/path")
				if err != nil {
					return err
				}
				_, err = c.Reservations.Reserve(within(t, 5*time.Second), &pb.ReserveRequest{Spec: &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{ep}}})
				return err
			},
			"list ports": func() error {
				in, err := c.Ports.ListPortUses(within(t, 5*time.Second), &pb.ListPortUsesRequest{})
				if err == nil {
					_, err = in.Recv()
				}
				return err
			},
		}
		for name, call := range calls {
			if err := call(); !errors.Is(err, client.ErrExhausted) || !strings.Contains(err.Error(), "RLIMIT_NOFILE") {
				t.Errorf("%s: %v; want the limit's name", name, err)
			}
		}
	})
	t.Run("who administers portd is let in", func(t *testing.T) {
		late, err := client.Dial(within(t, 5*time.Second), client.Options{Socket: p.Socket})
		if err != nil {
			t.Fatal(err)
		}
		defer late.Close()
		p.status(t, late)
	})
	t.Run("others are told why not", func(t *testing.T) {
		cmd := acting("asker", p.Socket)
		cmd.SysProcAttr = as(t, 65534)
		if said, err := cmd.Output(); err != nil || !strings.Contains(string(said), "RLIMIT_NOFILE") {
			t.Errorf("somebody else is told %q, %v", said, err)
		}
	})

	if n := len(p.lines(t, `"level":"WARN"`)); n > 20 {
		t.Errorf("%d warnings", n)
	}
	if err := <-attached; !errors.Is(err, client.ErrExhausted) || !strings.Contains(err.Error(), "RLIMIT_NOFILE") {
		t.Errorf("who attaches is told %v; want the limit's name", err)
	}
	if said := strings.Join(p.lines(t, "cannot hand over connections; they wait"), "\n"); !strings.Contains(said, "RLIMIT_NOFILE") {
		t.Errorf("the log says %q; want the limit's name", said)
	}
	lift()
	wantAnswers(t, waiting)
	p.serve(t, "web", "second")
	if _, err := reserve(t.Context(), c, "more"); err != nil {
		t.Error(err)
	}
}
