package client_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/portd/portd/client"
)

// A path is served like a port: a worker comes and goes, and clients wait for the next one.
func TestListenUnix(t *testing.T) {
	p := newPortd(t)
	path := filepath.Join(filepath.Dir(p.cfg.Socket), "app.sock")
	endpoint := "unix" + path
	get := func() string {
		t.Helper()
		user := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) },
		}}
		resp, err := user.Get("http://app/")
		if err != nil {
			t.Error(err)
			return ""
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Error(err)
		}
		return string(body)
	}
	serve := func(l *client.Listener, answer string) (stop func()) {
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, answer+" at "+r.Context().Value(http.LocalAddrContextKey).(net.Addr).String())
		})}
		var serving sync.WaitGroup
		serving.Go(func() { _ = srv.Serve(l) })
		return func() {
			if err := srv.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			serving.Wait()
		}
	}

	first := p.listen(client.ListenConfig{Keep: true}, endpoint)
	if at := first.Addr(); at.Network() != "unix" || at.String() != path {
		t.Errorf("it listens on %v %v", at.Network(), at)
	}
	stop := serve(first, "first")
	if got := get(); got != "first at "+path {
		t.Errorf("the first worker says %q", got)
	}
	stop()
	// Nobody serves; who connects waits.
	waiting := make(chan string)
	go func() { waiting <- get() }()
	stop = serve(p.listen(client.ListenConfig{Keep: true}, endpoint), "second")
	if got := <-waiting; got != "second at "+path {
		t.Errorf("who waited got %q", got)
	}
	stop()

	// After a restart portd takes the path again, over the file that it had.
	p.stop()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the file of a stopped portd: %v", err)
	}
	p.start()
	stop = serve(p.listen(client.ListenConfig{Keep: true}, endpoint), "third")
	defer stop()
	if got := get(); got != "third at "+path {
		t.Errorf("after a restart: %q", got)
	}
}

// The connection itself behaves as one of package net's does.
func TestUnixConn(t *testing.T) {
	p := newPortd(t)
	path := filepath.Join(filepath.Dir(p.cfg.Socket), "app.sock")
	l := p.listen(client.ListenConfig{}, "unix"+path)
	user, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if c.LocalAddr().String() != path || c.RemoteAddr().Network() != "unix" {
		t.Errorf("from %v %v to %v", c.RemoteAddr().Network(), c.RemoteAddr(), c.LocalAddr())
	}
	if _, err := client.TCPConn(c); err == nil {
		t.Error("it is taken for a TCP connection")
	}
	if _, err := io.WriteString(user, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); line != "hello\n" || err != nil {
		t.Errorf("read %q, %v", line, err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
	if n, err := user.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after CloseWrite: %d, %v", n, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	_, err = c.Read(make([]byte, 1))
	if op, ok := err.(*net.OpError); !ok || op.Net != "unix" || op.Err != net.ErrClosed {
		t.Errorf("after Close: %#v", err)
	}
}
