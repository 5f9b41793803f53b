package skew_test

import (
	"os/exec"
	"path/filepath"
	"testing"

	pb "github.com/portd/portd/proto/portd/v1"
)

// What one release has stored the other reads when it is started in its place, after a stop and after a crash that left a journal; so
// does its portctl without a portd, and its portd from a backup.
func TestStore(t *testing.T) {
	directions(t, func(t *testing.T, first, second *release) {
		s := open(t)
		s.install(first)
		s.start()
		s.furnish()
		// Its program is still there, and will have it alone.
		if _, err := s.client.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: "adopted"}); err != nil {
			t.Fatal(err)
		}
		all := s.change(first, second)
		for _, next := range []*release{second, first, second} {
			s.stop()
			for _, r := range []*release{first, second} {
				if said := s.portctl(r, "whois", "-q", "8123/tcp"); said != "skewed\n" {
					t.Errorf("without a portd the %v portctl says %q", r, said)
				}
			}
			s.install(next)
			s.start()
			s.runs(next, next)
			s.same(all)
			all = s.change(first, second)
		}
		for _, next := range []*release{first, second, first} {
			s.crash()
			s.install(next)
			s.start()
			s.runs(next, next)
			s.same(all)
			all = s.change(first, second)
		}
		backup := filepath.Join(s.dir, "backup")
		s.portctl(second, "backup", backup)
		for _, next := range []*release{second, first} {
			s.stop()
			if out, err := exec.Command(next.portd(), "--restore", backup, "--state", s.state).CombinedOutput(); err != nil {
				t.Fatalf("the %v portd restores a backup of the %v one: %v: %s", next, first, err, out)
			}
			s.install(next)
			s.start()
			s.runs(next, next)
			id := s.look().StoreID
			if id == all.StoreID {
				t.Errorf("what is restored has the id %s of what was there", id)
			}
			all.StoreID = id
			s.same(all)
		}
	})
}
