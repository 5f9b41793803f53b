package handoff_test

import (
	"runtime"
	"testing"
	"time"
)

// An engine that waits holds up nobody who has to stop all of the program, or runs beside it.
func TestWaitingEngineHoldsUpNobody(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	l := h.join(res)
	var longest time.Duration
	for range 50 {
		pair(t, l, addrOf(res)) // the engine begins to wait
		start := time.Now()
		runtime.GC()
		longest = max(longest, time.Since(start))
	}
	if longest > 5*time.Second {
		t.Errorf("a collection took %v", longest)
	}
}
