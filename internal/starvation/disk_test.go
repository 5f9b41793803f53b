package starvation_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

// No file of portd's may grow, which is what a full disk is to it, only that a test can have it of one process. What is asked is answered,
// what is to be changed is refused and undone, and works again when there is room.
func TestNoRoomForFiles(t *testing.T) {
	t.Parallel()
	p := prepare(t).begin(t)
	c := p.Client(t)
	addr := listens(t, c, "web", nil)
	p.serve(t, "web", "first")

	lift := p.limit(t, unix.RLIMIT_FSIZE, 0)
	defer lift()
	res, err := reserve(within(t, 10*time.Second), c, "more")
	if !errors.Is(err, client.ErrUnavailable) || !strings.Contains(err.Error(), "RLIMIT_FSIZE") {
		t.Errorf("reserve: %v, %v; want the limit's name", res, err)
	}
	if _, err := c.Reservations.Release(within(t, 10*time.Second), &pb.ReleaseRequest{Reservation: "web"}); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("release: %v", err)
	}
	if st := p.status(t, c); st.GetReservations() != 1 {
		t.Errorf("status says %v", st)
	}
	wantAnswers(t, visit(t, addr, 5))
	p.rests(t)

	lift()
	eventually(t, "a reservation is made again", func() bool {
		_, err := reserve(within(t, 10*time.Second), c, "more")
		return err == nil
	})
}
