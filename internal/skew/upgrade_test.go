package skew_test

import (
	"testing"
	"time"
)

// A portd is upgraded to the other release and rolled back, while workers of both serve in each language, clients connect, sessions last
// and somebody watches. Nobody notices, and what one has recorded the other has too.
func TestUpgrade(t *testing.T) {
	directions(t, func(t *testing.T, first, second *release) {
		s := open(t)
		s.install(first)
		s.start()
		s.runs(first, first)
		s.furnish()
		session, err := s.client.OpenSession(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.populate(first, second)
		for _, r := range []*release{first, second} {
			s.watch(r)
		}
		all := s.change(first, second)
		s.serves()
		for _, to := range []*release{second, first, second} {
			began := time.Now()
			s.upgrade(map[bool]*release{true: first, false: second}[to == second], to) // asked by a portctl of before
			t.Logf("the %v release takes over within %v", to, time.Since(began).Round(time.Millisecond))
			s.runs(to, to)
			s.same(all)
			s.serves()
			all = s.change(first, second)
			s.seen(all)
			// What the keeper was told by one, it starts again as the other.
			s.kill()
			s.runs(to, to)
			s.same(all)
			s.serves()
			s.content()
		}
		select {
		case <-session.Done():
			t.Errorf("the session has ended: %v", session.Err())
		default:
		}
		if err := session.End(); err != nil {
			t.Error(err)
		}
		s.finish()
	})
}
