package handoff_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

func text(s string) *string { return &s }

// hears waits for the next thing that portd says to a worker.
func (w *rawWorker) hears() string {
	w.t.Helper()
	_ = w.SetReadDeadline(time.Now().Add(20 * time.Second))
	m, err := receive(w.UnixConn)
	if err != nil {
		w.t.Fatalf("it hears nothing: %v", err)
	}
	switch m.Type {
	case wire.TypeDrain:
		return "drain"
	case wire.TypeDrained:
		return "drained"
	}
	w.t.Fatalf("it hears a message of type %d", m.Type)
	return ""
}

// A worker that is drained by somebody else is told, gets no more, and is drained when it has taken what lay in its queue. Others get
// the rest meanwhile.
func TestOperatorDrains(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	w := h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}, Generation: "v1"})
	_, first := askMany(t, addrOf(res), 1)
	until(t, "it is in the queue", func() bool { return h.Workers()[0].Sent == 1 })
	got, err := h.Pool.Drain(t.Context(), handoff.Drain{Reservation: res.ID})
	if err != nil || len(got.Workers) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if l := got.Workers[0].Listeners[0]; l.State != handoff.Draining || l.Drained || got.Workers[0].Generation != "v1" {
		t.Errorf("%+v", got.Workers[0])
	}
	if len(got.Without) != 1 || got.Without[0] != res.Assigned[0].Endpoint {
		t.Errorf("left without a worker: %v", got.Without)
	}
	if s := w.hears(); s != "drain" {
		t.Errorf("it hears %s", s)
	}
	go func() { _ = echo(h.join(res)) }()
	if _, failures := askMany(t, addrOf(res), 20); failures() > 0 {
		t.Error("others do not serve")
	}
	drained := make(chan handoff.Drained, 1)
	go func() {
		got, err := h.Pool.Drain(t.Context(), handoff.Drain{Reservation: res.ID, Workers: []string{w.got.ID}, Wait: time.Minute})
		if err != nil {
			t.Error(err)
		}
		drained <- got
	}()
	sequence, conns, fds := w.take()
	answer{fds: fds}.close()
	if sequence != 1 || len(conns) != 1 {
		t.Errorf("in its queue lay message %d with %d connections", sequence, len(conns))
	}
	first()
	if s := w.hears(); s != "drained" {
		t.Errorf("it hears %s", s)
	}
	if got := <-drained; len(got.Workers) != 1 || !got.Workers[0].Listeners[0].Drained || len(got.Without) != 0 {
		t.Errorf("%+v", got)
	}
	// It may go on all the same.
	if _, err := w.Write(wire.AppendReady(nil, wire.AllListeners)); err != nil {
		t.Fatal(err)
	}
	until(t, "it is ready", func() bool {
		for _, seen := range h.Workers() {
			if seen.ID == w.got.ID {
				return seen.Listeners[0].State == handoff.Ready && !seen.Listeners[0].Drained
			}
		}
		return false
	})
}

// A worker that leaves while it is waited for has nothing in its queue.
func TestDrainedByLeaving(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	w := h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}})
	_, failures := askMany(t, addrOf(res), 1)
	until(t, "it is in the queue", func() bool { return h.Workers()[0].Sent == 1 })
	go func() {
		until(t, "it is draining", func() bool { return h.Workers()[0].Listeners[0].State == handoff.Draining })
		w.Close()
	}()
	got, err := h.Pool.Drain(t.Context(), handoff.Drain{Reservation: res.ID, Wait: time.Minute})
	if err != nil || len(got.Workers) != 1 || !got.Workers[0].Listeners[0].Drained {
		t.Errorf("%+v, %v", got, err)
	}
	go func() { _ = echo(h.join(res)) }()
	if failures() > 0 {
		t.Error("what lay in its queue is lost")
	}
}

func TestDrainSome(t *testing.T) {
	h := newHost(t)
	res, other := h.listen("127.0.0.1"), h.listen("127.0.0.1")
	ids := map[string]string{}
	for _, generation := range []string{"", "v1", "v2"} {
		ids[generation] = h.attach(wire.Attach{
			Wishes: []wire.Wish{connections(res.ID), connections(other.ID)}, Generation: generation,
		}).got.ID
	}
	for _, tt := range []struct {
		name string
		d    handoff.Drain
		want []string
		err  error
	}{
		{"all", handoff.Drain{}, []string{"", "v1", "v2"}, nil},
		{"by id", handoff.Drain{Workers: []string{ids["v2"], ids[""]}}, []string{"", "v2"}, nil},
		{"of a generation", handoff.Drain{Generation: text("v1")}, []string{"v1"}, nil},
		{"without one", handoff.Drain{Generation: text("")}, []string{""}, nil},
		{"of none", handoff.Drain{Generation: text("v3")}, nil, nil},
		{"but a generation's", handoff.Drain{Except: text("v2")}, []string{"", "v1"}, nil},
		{"nobody is there by that id", handoff.Drain{Workers: []string{ids["v1"], "wrk_x"}}, nil, registry.ErrNotFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.d.Reservation = res.ID
			drained, err := h.Pool.Drain(t.Context(), tt.d)
			if !errors.Is(err, tt.err) {
				t.Fatal(err)
			}
			var got []string
			for _, w := range drained.Workers {
				got = append(got, w.Generation)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			for _, w := range h.Workers() {
				want := handoff.Ready
				for _, generation := range tt.want {
					if generation == w.Generation {
						want = handoff.Draining
					}
				}
				if w.Listeners[0].State != want || w.Listeners[1].State != handoff.Ready {
					t.Errorf("%q is %v here, %v there", w.Generation, w.Listeners[0].State, w.Listeners[1].State)
				}
			}
			h.SetReady(keyOf(res))
		})
	}
}

// The others are drained once enough successors are ready, and not before.
func TestSuccessorsFirst(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}, Generation: "v1"})
	done := make(chan handoff.Drained, 1)
	go func() {
		got, err := h.Pool.Drain(t.Context(), handoff.Drain{Reservation: res.ID, Except: text("v2"), Ready: 2, Within: time.Minute})
		if err != nil {
			t.Error(err)
		}
		done <- got
	}()
	h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}, Generation: "v2"})
	second := h.attach(wire.Attach{Wishes: []wire.Wish{{Reference: res.ID, Want: wire.WantConnections}}, Generation: "v2"})
	for _, w := range h.Workers() {
		if w.Generation == "v1" && w.Listeners[0].State != handoff.Ready {
			t.Error("drained too early")
		}
	}
	select {
	case <-done:
		t.Error("it did not wait")
	default:
	}
	if _, err := second.Write(wire.AppendReady(nil, 0)); err != nil {
		t.Fatal(err)
	}
	if got := <-done; len(got.Workers) != 1 || got.Workers[0].Generation != "v1" || len(got.Without) != 0 {
		t.Errorf("%+v", got)
	}
}

// Successors that are not ready in time are drained themselves, and the others go on.
func TestRollBack(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}, Generation: "v1"})
	h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}, Generation: "v2"})
	late := h.attach(wire.Attach{Wishes: []wire.Wish{{Reference: res.ID, Want: wire.WantConnections}}, Generation: "v2"})
	_, err := h.Pool.Drain(t.Context(), handoff.Drain{
		Reservation: res.ID, Endpoints: res.Endpoints(), Except: text("v2"), Ready: 2, Within: 20 * time.Millisecond,
	})
	var unsupported *registry.UnsupportedError
	if !errors.As(err, &unsupported) || unsupported.Code != "NOT_READY" || !strings.Contains(err.Error(), "1 of 2 workers of generation") {
		t.Errorf("%v", err)
	}
	if s := late.hears() + late.hears(); s != "draindrained" {
		t.Errorf("it hears %s", s)
	}
	for _, w := range h.Workers() {
		want := map[string]handoff.State{"v1": handoff.Ready, "v2": handoff.Draining}[w.Generation]
		if w.Listeners[0].State != want {
			t.Errorf("%s is %v", w.Generation, w.Listeners[0].State)
		}
	}
}

// Who waits and gives up has changed nothing; a Pool that ends says so.
func TestDrainGivenUp(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	h.attach(wire.Attach{Wishes: []wire.Wish{connections(res.ID)}, Generation: "v1"})
	d := handoff.Drain{Reservation: res.ID, Except: text("v2"), Ready: 1, Within: time.Minute}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	wait := func() {
		_, err := h.Pool.Drain(ctx, d)
		ended <- err
	}
	go wait()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	if s := h.Workers()[0].Listeners[0].State; s != handoff.Ready {
		t.Errorf("it is %v", s)
	}
	ctx = t.Context()
	go wait()
	h.stop()
	if err := <-ended; !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("portd stops: %v", err)
	}
}
