package starvation_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

// connect connects to a unix socket and says something; it is no error where that is refused.
func connect(t *testing.T, network, path, says string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout(network, path, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_, _ = io.WriteString(c, says)
	return c
}

// idle is how a gRPC client begins that asks for nothing.
func idle() string {
	var b bytes.Buffer
	b.WriteString(http2.ClientPreface)
	_ = http2.NewFramer(&b, nil).WriteSettings()
	return b.String()
}

// Connections that say too little to be anything, of one user and more than he may have: they are let go by themselves.
func TestHalfOpen(t *testing.T) {
	t.Parallel()
	const limit = 800
	for _, tt := range []struct{ name, network, says string }{
		{"silent", "unix", ""},
		{"half a preface", "unix", http2.ClientPreface[:10]},
		{"a preface and nothing", "unix", http2.ClientPreface},
		{"half a request", "unix", "GET /v1/status HTTP/1.1\r\nHost: x\r\n"},
		{"silent workers", "unixpacket", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := descriptors(t, limit).begin(t)
			before := p.open(t)
			path := p.Socket
			if tt.network == "unixpacket" {
				path = p.Handoff()
			}
			var all []net.Conn
			for range limit / 2 {
				all = append(all, connect(t, tt.network, path, tt.says))
			}
			if n := p.open(t); n > limit/2 {
				t.Errorf("%d descriptors of %d are open", n, limit)
			}
			for i, c := range all {
				_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
				if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatalf("connection %d is still open", i)
				}
			}
			eventually(t, "as many descriptors as before", func() bool { return p.open(t) <= before+1 })
			p.status(t, p.Client(t))
		})
	}
}

// Thousands of sessions of one user that ask for nothing, which is allowed: he gets so many, and is told so; others notice nothing.
func TestManySessions(t *testing.T) {
	t.Parallel()
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		t.Fatal(err)
	}
	n, most := 3000, 500
	if os.Getenv("PORTD_LONG") != "" {
		n, most = 10_000, 4096
	}
	n = min(n, int(own.Max)-200)
	if n < 2*most {
		t.Skipf("needs %d descriptors; RLIMIT_NOFILE is %d", 2*most+200, own.Max)
	}
	p := descriptors(t, 4*most+300).begin(t)
	c := p.Client(t)
	before := p.memory(t)
	var all []net.Conn
	began := time.Now()
	for range n {
		all = append(all, connect(t, "unix", p.Socket, idle()))
	}
	t.Logf("%d sessions in %v, %d descriptors, %d MB (%d before)", n, time.Since(began), p.open(t), p.memory(t)>>20, before>>20)
	if open := p.open(t); open > 4*most/2 {
		t.Errorf("%d descriptors are open", open)
	}
	p.rests(t)
	p.status(t, c)
	late, err := client.Dial(t.Context(), client.Options{Socket: p.Socket})
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	eventually(t, "who has too many is told so", func() bool {
		_, err := late.Daemon.GetStatus(within(t, 5*time.Second), &pb.GetStatusRequest{})
		return errors.Is(err, client.ErrExhausted) && strings.Contains(err.Error(), "connections to portd")
	})
	t.Run("others are answered", func(t *testing.T) {
		cmd := acting("asker", p.Socket)
		cmd.SysProcAttr = as(t, 65534)
		if said, err := cmd.Output(); err != nil || string(said) != "answered\n" {
			t.Errorf("somebody else is told %q, %v", said, err)
		}
	})
	for _, c := range all {
		c.Close()
	}
	p.status(t, p.Client(t))
}

// calls opens n calls of a method on a connection of its own, of which it never reads an answer. A call without a message is one whose caller
// has not said yet what he wants.
func (p *process) calls(t *testing.T, method string, message []byte, n int) net.Conn {
	t.Helper()
	c := connect(t, "unix", p.Socket, idle())
	_ = c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	var all, head bytes.Buffer
	enc, fr := hpack.NewEncoder(&head), http2.NewFramer(&all, nil)
	err := fr.WriteSettingsAck()
	for i := range n {
		head.Reset()
		for _, f := range []hpack.HeaderField{
			{Name: ":method", Value: "POST"},
			{Name: ":scheme", Value: "http"},
			{Name: ":path", Value: method},
			{Name: ":authority", Value: "x"},
			{Name: "te", Value: "trailers"},
			{Name: "content-type", Value: "application/grpc"},
		} {
			_ = enc.WriteField(f)
		}
		id := uint32(2*i + 1)
		err = errors.Join(err, fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(), EndHeaders: true}))
		if message != nil {
			err = errors.Join(err, fr.WriteData(id, true, append([]byte{0, 0, 0, 0, byte(len(message))}, message...)))
		}
	}
	if err == nil {
		_, err = c.Write(all.Bytes())
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Requests of which half is sent, each as large as may be, on many connections: what one user can have of portd's memory with them is
// bounded, and he has none of it after a while.
func TestHalfSent(t *testing.T) {
	t.Parallel()
	p := descriptors(t, 800).begin(t)
	const perConn, size = 100, 1 << 20
	half := make([]byte, 5+size/2)
	binary.BigEndian.PutUint32(half[1:], size)
	var writing sync.WaitGroup
	for range 8 {
		c := p.calls(t, "/portd.v1.ReservationService/Reserve", nil, perConn)
		_ = c.SetWriteDeadline(time.Now().Add(30 * time.Second))
		writing.Go(func() {
			fr := http2.NewFramer(c, nil)
			for i := range perConn {
				for rest := half; len(rest) > 0; {
					n := min(len(rest), 16<<10)
					if fr.WriteData(uint32(2*i+1), false, rest[:n]) != nil {
						return // it does not take them any more
					}
					rest = rest[n:]
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writing.Wait(); close(done) }()
	most := 0
	for ticker := time.NewTicker(5 * time.Millisecond); ; <-ticker.C {
		most = max(most, p.memory(t)>>20)
		select {
		case <-done:
		default:
			continue
		}
		break
	}
	t.Logf("%d requests of which half came: %d MB at most", 8*perConn, most)
	if most > 250 {
		t.Errorf("%d MB for %d requests", most, 8*perConn)
	}
	if _, err := reserve(within(t, 10*time.Second), p.Client(t), "whole"); err != nil {
		t.Error(err)
	}
}

// Calls of which nothing is ever read: watches of the whole history, lists of everything, and calls without their request. Changes go
// on, another user is answered, and there is a bound to what one user can have of portd's memory.
func TestCallsThatNobodyReads(t *testing.T) {
	t.Parallel()
	p := descriptors(t, 800).begin(t) // of which a user gets 175 connections, with 350 calls beside those on the first ones
	c := p.Client(t)
	for i := range 100 {
		if _, err := reserve(t.Context(), c, fmt.Sprintf("r%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	const perConn, service = 256, "/portd.v1.ReservationService/"
	var all []net.Conn
	for range 2 { // among the first of the user's connections, whose calls are not counted: a list ends by itself
		all = append(all, p.calls(t, service+"ListReservations", []byte{}, perConn))
	}
	for range 8 {
		all = append(all, p.calls(t, service+"WatchReservations", []byte{0x08, 0x01}, perConn)) // from revision 1
	}
	for range 2 {
		all = append(all, p.calls(t, service+"Reserve", nil, perConn))
	}
	p.rests(t)
	mb := p.memory(t) >> 20
	t.Logf("%d calls: %d MB", len(all)*perConn, mb)
	if mb > 200 {
		t.Errorf("%d MB for %d calls", mb, len(all)*perConn)
	}
	if _, err := reserve(within(t, 10*time.Second), c, "another"); err != nil {
		t.Error(err)
	}
	late, err := client.Dial(t.Context(), client.Options{Socket: p.Socket})
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	eventually(t, "one call more is refused", func() bool {
		_, err := late.Daemon.GetStatus(within(t, 5*time.Second), &pb.GetStatusRequest{})
		return errors.Is(err, client.ErrExhausted) && strings.Contains(err.Error(), "350 calls")
	})
	t.Run("others are answered", func(t *testing.T) {
		cmd := acting("asker", p.Socket)
		cmd.SysProcAttr = as(t, 65534)
		if said, err := cmd.Output(); err != nil || string(said) != "answered\n" {
			t.Errorf("somebody else is told %q, %v", said, err)
		}
	})
	for _, c := range all {
		c.Close()
	}
	eventually(t, "calls end with their connections", func() bool {
		_, err := late.Daemon.GetStatus(within(t, 5*time.Second), &pb.GetStatusRequest{})
		return err == nil
	})
}
