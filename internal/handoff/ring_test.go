package handoff

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// Accepting by the ring neither waits nor touches how the socket is for others.
func TestRing(t *testing.T) {
	r, err := newRing()
	if err != nil {
		t.Skipf("needs io_uring with IORING_ACCEPT_DONTWAIT: %v", err)
	}
	defer r.close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd()) // blocks from here on
	from := new(unix.RawSockaddrInet6)
	for range 10 { // goes round the queues
		if c, errno := r.accept(fd, from); errno != unix.EAGAIN {
			t.Fatalf("without a client: %d, %v; want EAGAIN", c, errno)
		}
		client, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c, errno := r.accept(fd, from)
		if errno != 0 {
			t.Fatal(errno)
		}
		peer := peerAddr(from)
		if got := peer.AddrPort().String(); got != client.LocalAddr().String() {
			t.Errorf("peer %v, want %v", got, client.LocalAddr())
		}
		if blocking(c) {
			t.Error("the connection blocks")
		}
		unix.Close(c)
		client.Close()
	}
	if !blocking(fd) {
		t.Error("the listener no longer blocks")
	}
}
