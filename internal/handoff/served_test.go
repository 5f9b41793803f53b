package handoff_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// A gRPC server serves over the pool as over a listener of its own: calls, streams, and a stop that waits for them.
func TestGRPC(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	l := &closing{Listener: h.join(res), closed: make(chan struct{})}
	srv, state := grpc.NewServer(), health.NewServer()
	healthpb.RegisterHealthServer(srv, state)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := srv.Serve(l); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	cc, err := grpc.NewClient(addrOf(res), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	user := healthpb.NewHealthClient(cc)
	for range 20 {
		if got, err := user.Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil || got.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Fatalf("Check: %v, %v", got, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := user.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{
		healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING, healthpb.HealthCheckResponse_SERVING,
	} {
		state.SetServingStatus("", want)
		if got, err := stream.Recv(); err != nil || got.GetStatus() != want {
			t.Fatalf("the stream says %v, %v; want %v", got, err, want)
		}
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); srv.GracefulStop() }()
	<-l.closed
	state.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	if got, err := stream.Recv(); err != nil || got.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("a stream goes on while the server stops: %v, %v", got, err)
	}
	cancel()
	<-stopped
	serving.Wait()
}

// closing tells when a listener is closed.
type closing struct {
	net.Listener
	once   sync.Once
	closed chan struct{}
}

func (l *closing) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() { close(l.closed) })
	return err
}

// What net/http does with a connection beyond reading and writing.
func TestHTTPServer(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	l := h.join(res)
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // whole, since a server that answers before that closes the connection
		_, _ = w.Write(body)
	})
	mux.HandleFunc("/upgrade", func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, _ = io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = rw.Flush()
		_, _ = io.Copy(c, rw)
	})
	var mu sync.Mutex
	opened := 0
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 10 * time.Second,
		ConnState: func(_ net.Conn, s http.ConnState) {
			mu.Lock()
			defer mu.Unlock()
			if s == http.StateNew {
				opened++
			}
		},
	}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	url := "http://" + addrOf(res)

	t.Run("keep-alive and Expect", func(t *testing.T) {
		transport := &http.Transport{ExpectContinueTimeout: 10 * time.Second}
		defer transport.CloseIdleConnections()
		for i := range 10 {
			body := bytes.Repeat([]byte{'x'}, i*10_000)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/echo", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Expect", "100-continue")
			resp, err := (&http.Client{Transport: transport}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || !bytes.Equal(got, body) {
				t.Fatalf("%d of %d bytes, %v", len(got), len(body), err)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if opened != 1 {
			t.Errorf("ten requests took %d connections", opened)
		}
	})
	t.Run("Hijack", func(t *testing.T) {
		c, err := net.Dial("tcp", addrOf(res))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly ")
		in := bufio.NewReader(c)
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%v, %v", resp, err)
		}
		_, _ = io.WriteString(c, "and late")
		_ = c.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(in); string(got) != "early and late" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// HTTP/2 over TLS, and the alert that ends a TLS connection.
func TestTLS(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	l := h.join(res)
	cert := selfSigned(t)
	srv := &http.Server{
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
	}
	go func() { _ = srv.ServeTLS(l, "", "") }()
	defer srv.Close()
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	for _, want := range []string{"HTTP/1.1", "HTTP/2.0"} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: want == "HTTP/2.0"}
		if got := get(t, &http.Client{Transport: transport}, "https://"+addrOf(res)); got != want {
			t.Errorf("served over %s, want %s", got, want)
		}
		transport.CloseIdleConnections()
	}
}

// A deadline counts that was set before anybody had to wait, and one that has passed spoils what could be read at once.
func TestDeadlineBeforeWaiting(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	l := h.join(res)
	s, _ := pair(t, l, addrOf(res))
	_ = s.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("nothing comes: %v", err)
	}
	s, c := pair(t, l, addrOf(res))
	if _, err := io.WriteString(c, "there"); err != nil {
		t.Fatal(err)
	}
	_ = s.SetDeadline(time.Unix(1, 0))
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read too late: %v", err)
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write too late: %v", err)
	}
	_ = s.SetDeadline(time.Time{})
	buf := make([]byte, 5)
	if _, err := io.ReadFull(s, buf); err != nil || string(buf) != "there" {
		t.Errorf("%q, %v", buf, err)
	}
}

// Two writes at once do not mix, though the first may begin without the netpoller and end with it.
func TestWritesDoNotMix(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	s, c := pair(t, h.join(res), addrOf(res))
	const size = 8 << 20 // more than any socket's buffers hold
	var writing sync.WaitGroup
	for _, what := range []string{"a", "b"} {
		writing.Go(func() {
			if n, err := io.WriteString(s, strings.Repeat(what, size)); n != size || err != nil {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
	}
	go func() { writing.Wait(); s.Close() }()
	got, err := io.ReadAll(c)
	if err != nil || len(got) != 2*size {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if first := got[:size]; bytes.Count(first, first[:1]) != size {
		t.Error("they are mixed")
	}
}

// A connection that a program forgets is closed, as package net has it, and counts as done, whether or not anybody has waited on it.
func TestForgotten(t *testing.T) {
	for _, waited := range []bool{false, true} {
		t.Run(fmt.Sprintf("waited=%v", waited), func(t *testing.T) {
			h := newHost(t)
			res := h.listen("127.0.0.1")
			l := h.join(res)
			c, err := net.Dial("tcp", addrOf(res))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if waited {
				_ = s.SetReadDeadline(time.Now().Add(time.Millisecond))
				_, _ = s.Read(make([]byte, 1))
			}
			s = nil
			until(t, "it is closed", func() bool {
				runtime.GC()
				_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
				_, err := c.Read(make([]byte, 1))
				return err == io.EOF
			})
			until(t, "it is done", func() bool { return h.Workers()[0].Done == 1 })
		})
	}
}
