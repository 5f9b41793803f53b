package handoff_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/nstest"
)

// serve serves HTTP on l and says what Serve ended with.
func serve(t *testing.T, l *client.Listener, name string) <-chan error {
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, name) })}
	ended := make(chan error, 1)
	go func() {
		err := srv.Serve(l)
		if errors.Is(err, net.ErrClosed) {
			ctx := context.WithoutCancel(t.Context())
			err = errors.Join(err, l.Wait(ctx), srv.Shutdown(ctx))
		}
		ended <- err
	}()
	return ended
}

// asking asks by HTTP, a few at a time, until done is called, which says how many were answered by whom and how many not.
func asking(t *testing.T, url string, atATime int) (done func() (by map[string]int, failed int)) {
	stop := make(chan struct{})
	answers := make(chan string, atATime)
	tr := &http.Transport{DisableKeepAlives: true}
	for range atATime {
		go func() {
			for {
				select {
				case <-stop:
					answers <- ""
					return
				default:
				}
				resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Get(url)
				if err != nil {
					answers <- "error: " + err.Error()
					continue
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil {
					body = []byte("error: " + err.Error())
				}
				answers <- string(body)
			}
		}()
	}
	type result struct {
		by     map[string]int
		failed int
	}
	counted := make(chan result)
	go func() {
		r := result{by: map[string]int{}}
		for running := atATime; running > 0; {
			switch a := <-answers; {
			case a == "":
				running--
			case strings.HasPrefix(a, "error: "):
				r.failed++
				t.Log(a)
			default:
				r.by[a]++
			}
		}
		counted <- r
	}()
	done = sync.OnceValues(func() (map[string]int, int) {
		close(stop)
		r := <-counted
		return r.by, r.failed
	})
	t.Cleanup(func() { done() })
	return done
}

// A worker that drains under load loses nothing: Accept ends when all is received, and others get the rest.
func TestDrainUnderLoad(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	stays := h.join(res)
	defer stays.Close()
	serve(t, stays, "stays")
	done := asking(t, "http://"+addrOf(res), 8)
	rounds := repeat(10, 300)
	for range rounds {
		l := h.join(res)
		ended := serve(t, l, "leaves")
		before := h.Totals(keyOf(res)).HandedOver
		until(t, "it serves", func() bool { return h.Totals(keyOf(res)).HandedOver > before+20 })
		if err := l.Drain(t.Context()); err != nil {
			t.Fatalf("Drain: %v", err)
		}
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Fatalf("Serve: %v", err)
		}
	}
	by, failed := done()
	if failed > 0 || by["leaves"] == 0 || by["stays"] == 0 {
		t.Errorf("answered %v, failed %d", by, failed)
	}
	if got := h.Totals(keyOf(res)); got.Redelivered != 0 || got.Lost != 0 {
		t.Errorf("%+v", got)
	}
}

// Somebody else drains it, and it does the same.
func TestDrainedUnderLoad(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	old := h.joinAs(res, "v1")
	ended := serve(t, old, "v1")
	done := asking(t, "http://"+addrOf(res), 8)
	rounds := repeat(10, 300)
	for i := range rounds {
		next := []string{"v2", "v1"}[i%2]
		l := h.joinAs(res, next)
		newEnded := serve(t, l, next)
		got, err := h.Pool.Drain(t.Context(), handoff.Drain{Reservation: res.ID, Except: &next, Ready: 1, Wait: time.Minute})
		if err != nil || len(got.Workers) == 0 || len(got.Without) > 0 { // the one before that may still be there
			t.Fatalf("%+v, %v", got, err)
		}
		for _, w := range got.Workers {
			if !w.Listeners[0].Drained {
				t.Errorf("%+v", w)
			}
		}
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Fatalf("Serve: %v", err)
		}
		ended = newEnded
	}
	by, failed := done()
	if failed > 0 || by["v1"] == 0 || by["v2"] == 0 {
		t.Errorf("answered %v, failed %d", by, failed)
	}
	if got := h.Totals(keyOf(res)); got.Redelivered != 0 || got.Lost != 0 {
		t.Errorf("%+v", got)
	}
}

func (h *host) joinAs(res interface{ Endpoints() string }, generation string) *client.Listener {
	h.t.Helper()
	l, err := client.Join(h.t.Context(), client.AttachConfig{
		Socket: h.socket, Generation: generation, Wishes: []client.Wish{{Reference: res.Endpoints()}},
	}, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Close() })
	return l
}

// Without somebody who accepts a Drain does not end by itself; when its time is over, what was not received goes to others.
func TestDrainTakesTooLong(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	l := h.join(res)
	_, failures := askMany(t, addrOf(res), 1)
	until(t, "it is in the queue", func() bool { return h.Totals(keyOf(res)).HandedOver == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := l.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Drain: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	if err := l.Drain(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Drain once more: %v", err)
	}
	go func() { _ = echo(h.join(res)) }()
	if n := failures(); n > 0 {
		t.Error("what it did not take is lost")
	}
}

// Of two listeners one is drained, and the other one goes on; it is taken up again, over a restart of portd, too.
func TestDrainOne(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer func() { h.stop() }()
	a, b := h.listen("127.0.0.1"), h.listen("127.0.0.1")
	l, err := client.Join(t.Context(), client.AttachConfig{
		Socket: h.socket, Wishes: []client.Wish{{Reference: a.ID}, {Reference: b.ID, NotReady: true}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan error, 1)
	go func() { ended <- echo(l) }()
	states := func() (s [2]handoff.State) {
		for _, w := range h.Workers() {
			for i, v := range w.Listeners {
				s[i] = v.State
			}
		}
		return s
	}
	want := func(what string, s ...handoff.State) {
		t.Helper()
		until(t, what, func() bool { return states() == [2]handoff.State(s) })
	}
	want("it begins", handoff.Ready, handoff.Attached)
	if err := l.Ready(1); err != nil {
		t.Fatal(err)
	}
	want("the second one is ready", handoff.Ready, handoff.Ready)
	if err := ask(addrOf(b), 1); err != nil {
		t.Error(err)
	}
	if err := l.Drain(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	want("the first one drains", handoff.Draining, handoff.Ready)
	if err := ask(addrOf(b), 2); err != nil {
		t.Error(err)
	}
	h.stop()
	h.start(handoff.Config{})
	want("after a restart", handoff.Draining, handoff.Ready)
	if err := ask(addrOf(b), 3); err != nil {
		t.Error(err)
	}
	if err := l.Ready(); err != nil {
		t.Fatal(err)
	}
	want("all goes on", handoff.Ready, handoff.Ready)
	if err := ask(addrOf(a), 4); err != nil {
		t.Error(err)
	}
	// One by one, by somebody else: with the last one Accept ends.
	if _, err := h.Pool.Drain(t.Context(), handoff.Drain{Reservation: a.ID, Wait: time.Minute}); err != nil {
		t.Error(err)
	}
	if err := ask(addrOf(b), 5); err != nil {
		t.Error(err)
	}
	if _, err := h.Pool.Drain(t.Context(), handoff.Drain{Reservation: b.ID, Wait: time.Minute}); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	if err := l.Ready(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Ready: %v", err)
	}
}

// A worker that drains while portd is away does not come back.
func TestDrainWhilePortdIsAway(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	res := h.listen("127.0.0.1")
	l := h.join(res)
	accepted := make(chan error, 1)
	go func() { accepted <- echo(l) }()
	h.stop()
	if err := l.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	l.Close()
}

// What a worker takes from the queue of an earlier attachment counts for Wait, too.
func TestWaitForWhatAnEarlierPortdSent(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	l := h.join(res)
	c, err := net.Dial("tcp", addrOf(res))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	until(t, "it is in the queue", func() bool { return h.Totals(keyOf(res)).HandedOver == 1 })
	h.stop()
	h.start(handoff.Config{})
	until(t, "it has attached again", func() bool { return len(h.Workers()) == 1 })
	if _, err := l.Accept(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := l.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a connection open: %v", err)
	}
}
