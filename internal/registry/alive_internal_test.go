package registry

import (
	"testing"
	"time"
)

// A clock that is set ahead and back again does not keep portd from saying that it is alive.
func TestDueAfterTheClockWasSet(t *testing.T) {
	seen := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		now  time.Duration // after it
		want bool
	}{
		{0, false},
		{seenEvery - 1, false},
		{seenEvery, true},
		{10 * 365 * 24 * time.Hour, true},
		{-time.Second, false},
		{-seenEvery, true},
		{-10 * 365 * 24 * time.Hour, true},
	} {
		if got := (&Boot{Seen: seen}).due(seen.Add(tt.now)); got != tt.want {
			t.Errorf("%v later: %v", tt.now, got)
		}
	}
	if (*Boot)(nil).due(seen) {
		t.Error("due without a boot")
	}
}
