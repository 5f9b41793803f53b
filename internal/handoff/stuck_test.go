package handoff_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

const takeBackAfter = 50 * time.Millisecond

// takeBack sets after which time a listener's connections are taken back from a worker that does not take them.
func (h *host) takeBack(res *registry.Reservation, after time.Duration) {
	h.options(res, registry.HandoffOptions{TakeBackAfter: after})
}

func (h *host) options(res *registry.Reservation, o registry.HandoffOptions) {
	h.mu.Lock()
	opt := registry.ListenOptions{Handoff: o}
	res.Assigned[0].Listen = &opt
	sockets := []registry.Socket{{Endpoint: res.Assigned[0].Endpoint, FD: h.fds[keyOf(res)]}}
	h.mu.Unlock()
	h.Listening(keyOf(res), sockets, opt)
}

// What a worker leaves lying goes to another one after the listener's time. It gets no more until it has taken the probe that lies there in
// its place, and then it is a worker like others.
func TestStuckWorkerLosesItsQueue(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	h.takeBack(res, takeBackAfter)
	stuck := h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}})
	const requests = 20
	answered, failures := askMany(t, addrOf(res), requests)
	until(t, "it is stuck", func() bool { return h.Workers()[0].Stuck })
	w := h.Workers()[0]
	if w.Sent != 0 || w.TakenBack == 0 || w.TakenBack > handoff.PerMessage {
		t.Errorf("after the first message was taken back: %+v", w)
	}
	if connections, messages := stuck.page.LoadSent(); connections != 0 || messages != 1 {
		t.Errorf("its page says %d connections in %d messages", connections, messages)
	}
	good := h.join(res)
	go func() { _ = echo(good) }()
	if n := failures(); n > 0 || answered.Load() != requests {
		t.Fatalf("%d answered, %d failed", answered.Load(), n)
	}
	want := handoff.Totals{Workers: 2, HandedOver: requests + w.TakenBack, Redelivered: w.TakenBack, TakenBack: w.TakenBack, Reception: registry.Served}
	got := h.Totals(keyOf(res))
	got.PerSecond, got.Waits = 0, nil // the time's affair
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	good.Close()
	until(t, "the other has left", func() bool { return len(h.Workers()) == 1 })

	// Alone, it gets nothing until it takes again.
	_, failures = askMany(t, addrOf(res), 1)
	if size, fds := stuck.takeAny(); size != handoff.FrameSize || len(fds) != 0 {
		t.Errorf("a probe has %d bytes and %d descriptors", size, len(fds))
	}
	sequence, conns, fds := stuck.take()
	if sequence != 2 || len(conns) != 1 {
		t.Errorf("then comes message %d with %d connections", sequence, len(conns))
	}
	if w := h.Workers()[0]; w.Stuck || w.Sent != 1 {
		t.Errorf("it takes again: %+v", w)
	}
	answer{fds: fds}.close()
	failures()
}

// Without a time set, nothing is taken from a worker that lives.
func TestNotTakenBackWhereNotAsked(t *testing.T) {
	h := newHost(t)
	patient, other := h.listen("127.0.0.1"), h.listen("127.0.0.1")
	h.takeBack(other, takeBackAfter)
	w := h.attach(wire.Attach{Wishes: []wire.Wish{connections(patient.ID)}})
	stuck := h.attach(wire.Attach{Wishes: []wire.Wish{connections(other.ID)}})
	_, failures := askMany(t, addrOf(patient), 1)
	until(t, "it is in the queue", func() bool { return h.Totals(keyOf(patient)).HandedOver == 1 })
	_, others := askMany(t, addrOf(other), 1)
	until(t, "the other one's was taken back", func() bool { return h.Totals(keyOf(other)).TakenBack == 1 })
	_, _, fds := w.take()
	answer{fds: fds}.close()
	failures()
	stuck.takeAny()
	_, _, fds = stuck.take()
	answer{fds: fds}.close()
	others()
}

// The time of a listener counts no more once that has been released.
func TestNotTakenBackForAReleasedListener(t *testing.T) {
	h := newHost(t)
	released, patient, other := h.listen("127.0.0.1"), h.listen("127.0.0.1"), h.listen("127.0.0.1")
	h.takeBack(released, takeBackAfter)
	h.takeBack(other, takeBackAfter)
	w := h.attach(wire.Attach{Wishes: []wire.Wish{connections(released.ID), connections(patient.ID)}})
	if _, err := w.Write(wire.AppendDrain(nil, 0)); err != nil {
		t.Fatal(err)
	}
	if s := w.hears(); s != "drained" { // it is attached for good
		t.Fatalf("it hears %s", s)
	}
	h.release(released, "released")
	_, failures := askMany(t, addrOf(patient), 1)
	until(t, "it is in the queue", func() bool { return h.Totals(keyOf(patient)).HandedOver == 1 })
	stuck := h.attach(wire.Attach{Wishes: []wire.Wish{connections(other.ID)}})
	_, others := askMany(t, addrOf(other), 1)
	until(t, "the other one's was taken back", func() bool { return h.Totals(keyOf(other)).TakenBack == 1 })
	if got := h.Totals(keyOf(patient)); got.TakenBack != 0 {
		t.Errorf("%+v", got)
	}
	w.Close()
	stuck.Close()
	for _, res := range []*registry.Reservation{patient, other} {
		l := h.join(res)
		go func() { _ = echo(l) }()
	}
	failures()
	others()
}

// A time that is set while connections lie in a queue counts for them, too; taken away, it counts no more.
func TestTakeBackIsSetMeanwhile(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}})
	_, failures := askMany(t, addrOf(res), 1)
	until(t, "it is in the queue", func() bool { return h.Totals(keyOf(res)).HandedOver == 1 })
	h.takeBack(res, time.Hour)
	h.takeBack(res, takeBackAfter)
	until(t, "it is taken back", func() bool { return h.Totals(keyOf(res)).TakenBack == 1 })
	h.takeBack(res, 0)
	go func() { _ = echo(h.join(res)) }()
	if n := failures(); n > 0 {
		t.Errorf("%d failed", n)
	}
}

// A worker that says it has no descriptors gives back what lies in its queue at once, whatever is set.
func TestGiveBack(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	w := h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}})
	_, failures := askMany(t, addrOf(res), 3)
	until(t, "something is in its queue", func() bool { return h.Totals(keyOf(res)).HandedOver > 0 })
	if _, err := w.Write(wire.AppendGiveBack(nil)); err != nil {
		t.Fatal(err)
	}
	until(t, "it gets nothing", func() bool { return h.Workers()[0].Stuck })
	// Once more means nothing, and is no offence.
	if _, err := w.Write(wire.AppendGiveBack(nil)); err != nil {
		t.Fatal(err)
	}
	good := h.join(res)
	go func() { _ = echo(good) }()
	if n := failures(); n > 0 {
		t.Errorf("%d of 3 failed", n)
	}
	if got := h.Totals(keyOf(res)); got.TakenBack == 0 || got.TakenBack != got.Redelivered {
		t.Errorf("%+v", got)
	}
	w.takeAny()
	until(t, "it gets connections again", func() bool { return !h.Workers()[0].Stuck && !h.Workers()[1].Stuck })
}

// Workers that take at about the moment at which portd takes back: each connection comes out once, to one of them, also where more than one
// message may wait. Some look before they take.
func TestTakeBackRace(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	h.takeBack(res, 10*time.Millisecond)
	stop := make(chan struct{})
	var working sync.WaitGroup
	for i := range 4 {
		w := h.attach(wire.Attach{Room: uint16(1 + i%2*3), Wishes: []wire.Wish{connections(res.ID)}})
		working.Go(func() { w.dawdle(stop, i >= 2) })
	}
	total := repeat(400, 8000)
	for range total / 40 {
		if _, failures := askMany(t, addrOf(res), 40); failures() > 0 {
			t.Error("not all were answered")
			break
		}
	}
	close(stop)
	working.Wait()
	got := h.Totals(keyOf(res))
	if got.HandedOver != uint64(total)+got.TakenBack || got.TakenBack != got.Redelivered || got.Lost != 0 {
		t.Errorf("%d asked: %+v", total, got)
	}
	if got.TakenBack == 0 {
		t.Error("nothing was ever taken back")
	}
	t.Logf("%d asked, %d taken back", total, got.TakenBack)
}

// dawdle answers connections, and takes each message at about the moment at which it is taken back, until stop is closed.
func (w *rawWorker) dawdle(stop <-chan struct{}, looks bool) {
	var in fdpass.Receiver
	peeked, packet := make([]byte, handoff.FrameSize), make([]byte, handoff.FrameSize)
	for {
		select {
		case <-stop:
			return
		default:
		}
		poll := []unix.PollFd{{Fd: int32(w.queue), Events: unix.POLLIN}}
		if n, _ := unix.Poll(poll, 10); n == 0 {
			continue
		}
		_, _ = unix.Poll(nil, 5+rand.IntN(15)) // it dawdles
		var duplicates []int
		if looks {
			_, fds, err := in.Peek(w.queue, peeked)
			if err != nil {
				continue
			}
			duplicates = append(duplicates, fds...)
		}
		n, fds, err := in.Recv(w.queue, packet)
		if errors.Is(err, unix.EAGAIN) {
			answer{fds: duplicates}.close()
			continue
		} else if err != nil {
			w.t.Error(err)
			return
		}
		if looks && string(peeked) == string(packet[:n]) {
			answer{fds: fds}.close()
			fds = duplicates
		} else {
			answer{fds: duplicates}.close()
		}
		for _, fd := range fds {
			buf := make([]byte, 64)
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
			n, err := unix.Read(fd, buf)
			if err == nil {
				_, err = unix.Write(fd, buf[:n])
			}
			if err != nil {
				w.t.Errorf("a connection that this worker has: %v", err)
			}
			unix.Close(fd)
			w.page.AddDone(1)
		}
	}
}

// takeAny takes one message of any kind.
func (w *rawWorker) takeAny() (size int, fds []int) {
	w.t.Helper()
	var in fdpass.Receiver
	buf := make([]byte, wire.MaxMessage)
	until(w.t, "a message comes", func() bool {
		var err error
		size, fds, err = in.Recv(w.queue, buf)
		return err == nil
	})
	return size, fds
}
