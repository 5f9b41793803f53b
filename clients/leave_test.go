package clients_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/portd/portd/internal/nstest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// With the reservation its workers end, by themselves and well.
func TestReleased(t *testing.T) {
	each(t, func(h *host, l language) {
		w := h.start(l, 0)
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		h.wait("the connection", func() bool { return h.seen(w).GetReceived() == 1 })
		if _, err := h.client.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: h.endpoint}); err != nil {
			t.Fatal(err)
		}
		if err := ask(c); err != nil {
			t.Errorf("what the worker had received: %v", err)
		}
		c.Close()
		w.leave()
	})
}

// An operator drains a worker as it drains itself.
func TestDrainedByOthers(t *testing.T) {
	each(t, func(h *host, l language) {
		old := h.start(l, 0, "--log", "--generation", "old")
		load := h.load(8)
		load.more(20)
		next := h.start(l, 0, "--log", "--generation", "next")
		except := "next"
		_, err := h.client.Handoff.DrainWorkers(t.Context(), &pb.DrainWorkersRequest{
			Reservation: h.endpoint, ExceptGeneration: &except, Ready: 1,
		})
		if err != nil {
			t.Fatal(err)
		}
		old.leave()
		load.more(20)
		load.account([]*worker{old, next})
		if len(load.failed) > 0 {
			t.Errorf("clients saw %v", load.failed)
		}
	})
}

// What a stopped worker leaves lying goes to others, and the worker gets more once it goes on.
func TestTakenBack(t *testing.T) {
	each(t, func(h *host, l language) {
		h.listen(&pb.ListenOptions{Handoff: &pb.HandoffOptions{TakeBackAfter: durationpb.New(50 * time.Millisecond)}})
		stuck, other := h.start(l, 0, "--log"), h.start(l, 0, "--log")
		load := h.load(16)
		load.more(20)
		for range 3 {
			stuck.signal(unix.SIGSTOP)
			load.more(100)
			h.wait("the worker to be stuck", func() bool { return h.seen(stuck).GetStuck() })
			before := h.seen(stuck).GetReceived()
			stuck.signal(unix.SIGCONT)
			h.wait("the worker to get more", func() bool { return h.seen(stuck).GetReceived() > before })
		}
		load.account([]*worker{stuck, other})
		if len(load.failed) > 0 || h.listener().GetTakenBack() == 0 {
			t.Errorf("%d were taken back; clients saw %v", h.listener().GetTakenBack(), load.failed)
		}
	})
}

// The examples serve, and end when they are told to.
func TestExamples(t *testing.T) {
	nstest.Need(t)
	t.Run("http", func(t *testing.T) {
		h := newHost(t)
		w := h.start(language{command: func(*host) []string { return []string{python(t), "python/http_server.py"} }}, 0)
		for range 20 {
			get, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+h.addr+"/go.mod", nil)
			if err != nil {
				t.Fatal(err)
			}
			get.Close = true
			got, err := http.DefaultClient.Do(get)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, got.Body)
			got.Body.Close()
		}
		h.wait("all to be closed", func() bool { s := h.seen(w); return s.GetSent() == 20 && s.GetDone() == 20 })
		w.signal(unix.SIGTERM)
		w.leave()
	})
	t.Run("asyncio", func(t *testing.T) {
		h := newHost(t)
		w := h.start(language{command: func(*host) []string { return []string{python(t), "python/asyncio_echo.py"} }}, 0)
		for range 20 {
			if _, err := h.ask(); err != nil {
				t.Fatal(err)
			}
		}
		w.signal(unix.SIGTERM)
		w.leave()
	})
}

// The socket itself is asked for in the same way.
func TestLent(t *testing.T) {
	nstest.Need(t)
	for _, l := range []language{languages[0], languages[2]} {
		t.Run(l.name, func(t *testing.T) {
			h := newHost(t)
			udp := h.reserve("udp/127.0.0.1:any")
			var argv []string
			if strings.HasPrefix(l.name, "c") {
				argv = []string{compile(t, "testdata/lent.c"), h.socket, udp}
			} else {
				argv = []string{python(t), "testdata/worker.py", "--socket", h.socket, "--lend", udp}
			}
			w := exec.Command(argv[0], argv[1:]...)
			w.Stderr = t.Output()
			out, err := w.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = w.Process.Kill(); _ = w.Wait() }()
			if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
				t.Fatal(line, err)
			}
			c, err := net.Dial("udp", strings.TrimPrefix(udp, "udp/"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, 8)
			if n, err := c.Read(answer); err != nil || string(answer[:n]) != "hello" {
				t.Errorf("%q, %v", answer[:n], err)
			}
		})
	}
}
