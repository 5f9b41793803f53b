package handoff_test

import (
	"net"
	"testing"
	"time"

	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/wire"
)

// A worker that writes nothing into its page is told that it is drained once it has taken the last message. The kernel wakes portd
// while that message is being freed and does not wake it again: what is still counted of it then is not another message.
func TestDrainedByTheQueueAlone(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	handed := uint64(0)
	for range repeat(2, 100) {
		w := h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}})
		for i := range uint64(200) { // two messages each: more within a second would be a flood
			c, err := net.Dial("tcp", addrOf(res))
			if err != nil {
				t.Fatal(err)
			}
			handed++
			until(t, "it is in the queue", func() bool { return h.Totals(keyOf(res)).HandedOver == handed })
			if _, err := w.Write(wire.AppendDrain(nil, 0)); err != nil {
				t.Fatal(err)
			}
			until(t, "it drains", func() bool { return h.Workers()[0].Listeners[0].State == handoff.Draining })
			_, _, fds := w.take()
			answer{fds: fds}.close()
			c.Close()
			_ = w.SetReadDeadline(time.Now().Add(5 * time.Second))
			m, err := receive(w.UnixConn)
			if err != nil {
				t.Fatalf("drained %d times, then: %v", handed-1, err)
			}
			if d, err := wire.DecodeDrained(m.Message); err != nil || d.Sent != i+1 {
				t.Fatalf("%v: %+v %v", m.Type, d, err)
			}
			if _, err := w.Write(wire.AppendReady(nil, 0)); err != nil {
				t.Fatal(err)
			}
		}
		w.Close()
		until(t, "it is gone", func() bool { return len(h.Workers()) == 0 })
	}
}
