package handoff_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"golang.org/x/sys/unix"
)

// envNarrow is the RLIMIT_NOFILE of a narrow worker.
const envNarrow = "HANDOFF_NOFILE"

// serveNarrow is an HTTP server that soon has no descriptors left: each request takes a while, and the log of a server that runs into its
// limit is nobody's business here.
func serveNarrow(cfg client.AttachConfig) error {
	limit, err := strconv.ParseUint(os.Getenv(envNarrow), 10, 31)
	if err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
		return err
	}
	l, err := client.Join(context.Background(), cfg, nil)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(5 * time.Millisecond)
		_, _ = fmt.Fprint(w, os.Getpid())
	})}
	os.Stderr = nil
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err := unix.Dup2(int(null.Fd()), 2); err != nil {
		return err
	}
	fmt.Println("ready")
	return srv.Serve(l)
}

// A worker that is out of descriptors, all the time, loses no connection. Alone it makes them wait; beside another one the other one
// gets them.
func TestWorkerOutOfDescriptors(t *testing.T) {
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	t.Setenv(envNarrow, "24") // some ten are open from the start
	narrow := h.worker("narrow", res.ID)
	get := func(i int) error {
		tr := &http.Transport{DisableKeepAlives: true}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr, Timeout: 60 * time.Second}).Get("http://" + addrOf(res))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
		return err
	}
	requests := repeat(300, 5000)
	load := func(what string) (back uint64) {
		t.Helper()
		before := h.Totals(keyOf(res))
		if failed := inParallel(requests, 60, get); len(failed) > 0 {
			t.Errorf("%s: %d of %d failed, the first: %v", what, len(failed), requests, failed[0])
		}
		after := h.Totals(keyOf(res))
		if n := after.HandedOver - before.HandedOver - (after.TakenBack - before.TakenBack); n != uint64(requests) || after.Lost != 0 {
			t.Errorf("%s: %d went to a worker and stayed there: %+v", what, n, after)
		}
		return after.TakenBack - before.TakenBack
	}
	alone := load("alone")
	if alone == 0 {
		t.Error("it never ran out of descriptors")
	}
	wide := h.join(res)
	defer wide.Close()
	serve(t, wide, "wide")
	both := load("both")
	t.Logf("given back: %d of %d alone, %d beside another one", alone, requests, both)
	narrow.kill(t)
	until(t, "it is gone", func() bool { return len(h.Workers()) == 1 })
	if got := h.Totals(keyOf(res)); got.Redelivered < got.TakenBack {
		t.Errorf("%+v", got)
	}
}

// inParallel does a thing n times, so many at a time, and returns the errors.
func inParallel(n, atATime int, do func(i int) error) (failed []error) {
	next, errs := make(chan int), make(chan error)
	for range atATime {
		go func() {
			for i := range next {
				errs <- do(i)
			}
		}()
	}
	go func() {
		for i := range n {
			next <- i
		}
		close(next)
	}()
	for range n {
		if err := <-errs; err != nil {
			failed = append(failed, err)
		}
	}
	return failed
}

// portd itself may be out of descriptors when a worker dies: what lies in its queue stays there until there are some.
func TestOutOfDescriptorsAtADeath(t *testing.T) {
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	stuck := h.worker("ignore", res.ID)
	_, failures := askMany(t, addrOf(res), handoff.PerMessage)
	until(t, "its queue is full", func() bool { return h.Totals(keyOf(res)).HandedOver > 0 })
	good := h.worker("serve", res.ID)
	until(t, "it is attached", func() bool { return len(h.Workers()) == 2 })
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	stuck.kill(t)
	until(t, "it is gone", func() bool { return len(h.Workers()) == 1 })
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if n := failures(); n > 0 {
		t.Errorf("%d failed", n)
	}
	if got := h.Totals(keyOf(res)); got.Lost != 0 || got.Redelivered == 0 {
		t.Errorf("%+v", got)
	}
	good.kill(t)
}

// writerFunc is an io.Writer.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// portd may have no descriptor for a client that comes, and nothing but time tells that it has some again.
func TestOutOfDescriptorsAtAnAccept(t *testing.T) {
	for _, strategy := range []registry.HandoffStrategy{registry.LeastActive, registry.ClientAddress} {
		t.Run(strategy.String(), func(t *testing.T) {
			h := newHost(t)
			h.stop()
			short := make(chan struct{})
			told := sync.OnceFunc(func() { close(short) })
			h.start(handoff.Config{Log: slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
				if strings.Contains(string(b), "cannot hand over connections") {
					told()
				}
				return len(b), nil
			}), nil))})
			defer h.stop()
			res := h.listen("127.0.0.1")
			h.set(res, registry.HandoffOptions{Strategy: strategy})
			l := h.join(res)
			go func() { _ = echo(l) }()
			c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(c)
			var was unix.Rlimit
			if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
				t.Fatal(err)
			}
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}); err != nil {
				t.Fatal(err)
			}
			e := res.Assigned[0].Endpoint
			err = unix.Connect(c, &unix.SockaddrInet4{Port: int(e.First), Addr: e.Addr.As4()})
			if err == nil {
				select {
				case <-short:
				case <-time.After(20 * time.Second):
					t.Error("portd does not run out of descriptors")
				}
			}
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
				t.Fatal(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.SetsockoptTimeval(c, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(c, []byte("there")); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 8)
			if n, err := unix.Read(c, buf); err != nil || string(buf[:n]) != "there" {
				t.Errorf("the client is told %q, %v", buf[:max(n, 0)], err)
			}
		})
	}
}
