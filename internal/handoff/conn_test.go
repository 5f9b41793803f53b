package handoff_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	"go.uber.org/goleak"
	"golang.org/x/net/nettest"
	"golang.org/x/sys/unix"
)

// pair is a connection that came through the pool, and the client's end of it.
func pair(t testing.TB, l net.Listener, addr string) (worker net.Conn, user *net.TCPConn) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		c.Close()
	})
	return s, c.(*net.TCPConn)
}

// What came through portd is still an ordinary connection.
func TestConn(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	l := h.join(res)
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		c2, err = net.Dial("tcp", addrOf(res))
		if err != nil {
			return nil, nil, nil, err
		}
		if c1, err = l.Accept(); err != nil {
			return nil, nil, nil, err
		}
		return c1, c2, func() { c1.Close(); c2.Close() }, nil
	})
}

func TestConnAsTCPConn(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	l := h.join(res)
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		c2, err = net.Dial("tcp", addrOf(res))
		if err != nil {
			return nil, nil, nil, err
		}
		s, err := l.Accept()
		if err != nil {
			return nil, nil, nil, err
		}
		tcp, err := client.TCPConn(s)
		if err != nil {
			return nil, nil, nil, err
		}
		return tcp, c2, func() { tcp.Close(); c2.Close() }, nil
	})
}

func TestConnErrors(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	l := h.join(res)
	s, c := pair(t, l, addrOf(res))

	var op *net.OpError
	_ = s.SetReadDeadline(time.Unix(1, 0))
	_, err := s.Read(make([]byte, 1))
	if !errors.As(err, &op) || !op.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) || op.Op != "read" || op.Net != "tcp" {
		t.Errorf("deadline: %#v", err)
	}
	_ = s.SetReadDeadline(time.Time{})
	// An abortive close of the client's.
	_ = c.SetLinger(0)
	c.Close()
	if _, err = s.Read(make([]byte, 1)); !errors.As(err, &op) || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reset: %#v", err)
	}
	s.Close()
	for name, err := range map[string]error{
		"read": second(s.Read(nil)), "write": second(s.Write([]byte("x"))), "close": s.Close(), "deadline": s.SetDeadline(time.Now()),
		"closewrite": s.(interface{ CloseWrite() error }).CloseWrite(),
	} {
		if !errors.As(err, &op) || !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %#v", name, err)
		}
	}
}

func second(_ int, err error) error { return err }

func TestHalfClose(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	s, c := pair(t, h.join(res), addrOf(res))
	if err := s.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("client reads %v, want EOF", err)
	}
	if _, err := io.WriteString(c, "still"); err != nil {
		t.Error(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(s, buf); err != nil || string(buf) != "still" {
		t.Errorf("%q, %v", buf, err)
	}
	if err := s.(interface{ CloseRead() error }).CloseRead(); err != nil {
		t.Error(err)
	}
	if _, err := s.Read(buf); err != io.EOF {
		t.Errorf("read after CloseRead: %v", err)
	}
}

// Options that portd set on the listener are inherited, so nothing is asked per connection; SyscallConn shows them.
func TestSyscallConn(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	s, _ := pair(t, h.join(res), addrOf(res))
	raw, err := s.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var flags int
	if err := raw.Control(func(fd uintptr) {
		flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0)
	}); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
}

// Large transfers from a file, from sockets and to sockets, by whichever way the connection finds.
func TestCopy(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	l := h.join(res)
	data := make([]byte, 3<<20+17)
	_, _ = rand.Read(data)
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	sources := map[string]func(t *testing.T) io.Reader{
		"file": func(t *testing.T) io.Reader {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return f
		},
		"part of a file": func(t *testing.T) io.Reader {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return io.MultiReader(io.LimitReader(f, 1000), f)
		},
		"socket": func(t *testing.T) io.Reader {
			s, c := pair(t, l, addrOf(res))
			go func() {
				_, _ = c.Write(data)
				c.Close()
			}()
			return s
		},
		"bytes": func(*testing.T) io.Reader { return strings.NewReader(string(data)) },
	}
	for name, source := range sources {
		t.Run(name, func(t *testing.T) {
			s, c := pair(t, l, addrOf(res))
			from := source(t)
			sent := make(chan error, 1)
			go func() {
				n, err := s.(io.ReaderFrom).ReadFrom(from)
				if err == nil && n != int64(len(data)) {
					err = fmt.Errorf("%d bytes", n)
				}
				if closeErr := s.Close(); err == nil {
					err = closeErr
				}
				sent <- err
			}()
			got, err := io.ReadAll(c)
			if sendErr := <-sent; err != nil || sendErr != nil || string(got) != string(data) {
				t.Errorf("%d of %d bytes: %v, %v", len(got), len(data), err, sendErr)
			}
		})
	}
	t.Run("to a socket", func(t *testing.T) {
		s, c := pair(t, l, addrOf(res))
		to, end := pair(t, l, addrOf(res))
		go func() {
			_, _ = c.Write(data)
			c.Close()
		}()
		go func() {
			_, _ = io.Copy(to, s)
			to.Close()
		}()
		got, err := io.ReadAll(end)
		if err != nil || string(got) != string(data) {
			t.Errorf("%d of %d bytes: %v", len(got), len(data), err)
		}
	})
}

func TestLimitedReadFromStopsThere(t *testing.T) {
	h := newHost(t)
	res := h.listen("127.0.0.1")
	l := h.join(res)
	s, c := pair(t, l, addrOf(res))
	from, end := pair(t, l, addrOf(res))
	if _, err := io.WriteString(end, "0123456789"); err != nil {
		t.Fatal(err)
	}
	limited := &io.LimitedReader{R: from, N: 4}
	if n, err := s.(io.ReaderFrom).ReadFrom(limited); n != 4 || err != nil || limited.N != 0 {
		t.Errorf("%d, %v; %d left", n, err, limited.N)
	}
	s.Close()
	if got, err := io.ReadAll(c); string(got) != "0123" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	rest := make([]byte, 6)
	if _, err := io.ReadFull(from, rest); err != nil || string(rest) != "456789" {
		t.Errorf("%q is left, %v", rest, err)
	}
}

func TestHTTP(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	nstest.Descriptors(t)
	h := newHost(t)
	defer h.stop()
	res := h.listen("127.0.0.1")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(strings.Repeat("x", 100_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/peer", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) })
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "http", true: "https"}[secure], func(t *testing.T) {
			l := h.join(res)
			srv := &http.Server{Handler: mux}
			transport := &http.Transport{}
			url := "http://" + addrOf(res)
			var ln net.Listener = l
			if secure {
				cert := selfSigned(t)
				url = "https://" + addrOf(res)
				srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}
				ln = tls.NewListener(l, srv.TLSConfig)
				roots := x509.NewCertPool()
				roots.AddCert(cert.Leaf)
				transport.TLSClientConfig = &tls.Config{RootCAs: roots}
				transport.ForceAttemptHTTP2 = true
			}
			var serving sync.WaitGroup
			serving.Go(func() {
				if err := srv.Serve(ln); err != http.ErrServerClosed {
					t.Errorf("Serve: %v", err)
				}
			})
			user := &http.Client{Transport: transport}
			for range 20 {
				if got := get(t, user, url+"/peer"); !strings.HasPrefix(got, "127.0.0.1:") {
					t.Errorf("the worker sees %q", got)
				}
				if got := get(t, user, url+"/file"); len(got) != 100_000 {
					t.Errorf("%d bytes", len(got))
				}
				transport.CloseIdleConnections()
			}
			// Shutdown hangs for ever if Close does not end Accept.
			if err := srv.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			serving.Wait()
		})
	}
}

func get(t *testing.T, user *http.Client, url string) string {
	t.Helper()
	resp, err := user.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}
