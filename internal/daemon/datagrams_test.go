package daemon_test

import (
	"context"
	encoding "encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

var little = encoding.LittleEndian

// reading is a program that has portd's UDP socket, of a hand-off socket and a reservation, and says the eight bytes of each datagram. It
// says them before it takes the datagram out of the queue if it is to be killed ("peek"), so that what it had taken is known; it takes them
// first if it may share the queue, and ends when it is told ("take").
func reading(args []string) error {
	how, at, ref := args[0], args[1], args[2]
	a, err := client.Attach(context.Background(), client.AttachConfig{Socket: at, Wishes: []client.Wish{{Reference: ref, Socket: true}}})
	if err != nil {
		return err
	}
	defer a.Close()
	fd := int(a.Listeners[0].Sockets[0].Fd())
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return err
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, unix.SIGTERM)
	buf := little.AppendUint64(nil, uint64(size))
	if _, err := os.Stdout.Write(buf); err != nil {
		return err
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for len(told) == 0 {
		if n, _ := unix.Poll(poll, 10); n == 0 {
			continue
		}
		flags := unix.MSG_DONTWAIT
		if how == "peek" {
			flags |= unix.MSG_PEEK
		}
		if n, _, err := unix.Recvfrom(fd, buf, flags); err != nil || n != len(buf) {
			continue
		}
		if _, err := os.Stdout.Write(buf); err != nil {
			return err
		}
		if how == "peek" {
			_, _, _ = unix.Recvfrom(fd, nil, unix.MSG_DONTWAIT)
		}
	}
	return nil
}

// A reader is such a program that runs.
type reader struct {
	cmd  *exec.Cmd
	size uint64 // of its socket's buffer
	done chan struct{}
}

// Workers are replaced and killed under a stream of datagrams, each of which one of them gets.
func TestRestartsLoseNoDatagram(t *testing.T) {
	const restarts = 12
	for i, tt := range []struct {
		name, how string
		group     uint32
		first     bool // the next one comes before the last one goes
	}{
		{"killed", "peek", 0, false},
		{"replaced", "take", 0, true},
		{"one of a group killed", "peek", 3, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, c := start(t)
			port := 8100 + i
			_, err := c.Reservations.Reserve(t.Context(), &pb.ReserveRequest{Name: "stream", Spec: &pb.ReservationSpec{
				BindOptions: &pb.BindOptions{Group: tt.group},
				Endpoints: []*pb.EndpointSpec{{
					Protocols: []pb.Protocol{pb.Protocol_PROTOCOL_UDP}, Choice: &pb.EndpointSpec_Exact{Exact: &pb.PortRange{First: uint32(port)}},
				}},
			}})
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			seen := map[uint64]int{}
			received := func() int { mu.Lock(); defer mu.Unlock(); return len(seen) }
			begin := func() *reader {
				r := &reader{cmd: acting("reading", tt.how, filepath.Join(filepath.Dir(d.Socket), "handoff.sock"), "stream"), done: make(chan struct{})}
				out, err := r.cmd.StdoutPipe()
				if err == nil {
					err = r.cmd.Start()
				}
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = r.cmd.Process.Kill() })
				buf := make([]byte, 8)
				if _, err := io.ReadFull(out, buf); err != nil {
					t.Fatalf("a worker did not attach: %v", err)
				}
				r.size = little.Uint64(buf)
				go func() {
					defer close(r.done)
					buf := make([]byte, 8)
					for {
						if _, err := io.ReadFull(out, buf); err != nil {
							return
						}
						mu.Lock()
						seen[little.Uint64(buf)]++
						mu.Unlock()
					}
				}()
				return r
			}
			end := func(r *reader) {
				sig := syscall.SIGTERM
				if tt.how == "peek" {
					sig = unix.SIGKILL
				}
				_ = r.cmd.Process.Signal(sig)
				<-r.done
				_ = r.cmd.Wait()
			}
			workers := []*reader{begin()}
			for len(workers) < int(tt.group) {
				workers = append(workers, begin())
			}
			// What no queue could hold is not sent: one datagram counts for less than 1 KB.
			const rate = 20_000
			most := workers[0].size / 1024 / 2

			outset := time.Now()
			halt, sent := make(chan struct{}), make(chan uint64)
			var clients []*net.UDPConn
			for range 16 {
				conn, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				clients = append(clients, conn)
			}
			go func() {
				var n uint64
				defer func() { sent <- n }()
				pace := time.NewTicker(time.Millisecond)
				defer pace.Stop()
				for began := time.Now(); ; {
					select {
					case <-halt:
						return
					case <-pace.C:
					}
					due := min(uint64(time.Since(began).Seconds()*rate), uint64(received())+most)
					for ; n < due; n++ {
						if _, err := clients[n%16].Write(little.AppendUint64(nil, n)); err != nil {
							t.Errorf("datagram %d: %v", n, err)
						}
					}
				}
			}()
			wait := func(more int) {
				t.Helper()
				deadline := time.Now().Add(20 * time.Second)
				for want := received() + more; received() < want; time.Sleep(time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatal("nobody reads")
					}
				}
			}
			for range restarts {
				wait(500)
				if tt.first {
					workers = append(workers, begin())
				}
				end(workers[0])
				workers = workers[1:]
				if !tt.first {
					workers = append(workers, begin())
				}
			}
			close(halt)
			total := <-sent
			for deadline := time.Now().Add(20 * time.Second); uint64(received()) < total && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
			for _, w := range workers {
				end(w)
			}
			lost, twice := 0, 0
			for n := range total {
				lost += 1 - min(seen[n], 1)
				twice += max(seen[n], 1) - 1
			}
			if lost > 0 || twice > restarts+len(workers) {
				t.Errorf("of %d datagrams %d were lost, and %d said twice", total, lost, twice)
			}
			t.Logf("%d datagrams in %v, %d restarts", total, time.Since(outset).Round(time.Millisecond), restarts)
		})
	}
}
