package skew_test

import (
	"testing"
)

// A keeper of one release starts, again and again, a daemon of the other; then it becomes that release itself, in place.
func TestKeeper(t *testing.T) {
	directions(t, func(t *testing.T, first, second *release) {
		s := open(t)
		s.install(first)
		s.start()
		s.furnish()
		s.populate(first, second)
		all := s.change(first, second)
		s.install(second)
		for range 4 {
			s.kill()
			s.runs(second, first)
			s.same(all)
			s.serves()
			s.content()
			all = s.change(first, second)
		}
		s.portctl(first, "upgrade") // to what is installed, which the daemon is already
		s.runs(second, second)
		s.same(all)
		s.serves()
		s.kill()
		s.runs(second, second)
		s.same(all)
		s.serves()
		// And back, by the way of a package that is put back.
		s.install(first)
		s.kill()
		s.runs(first, second)
		s.same(all)
		s.serves()
		s.portctl(second, "upgrade")
		s.runs(first, first)
		s.kill()
		s.runs(first, first)
		s.same(all)
		s.serves()
		s.finish()
	})
}
