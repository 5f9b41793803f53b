package client_test

import (
	"io"
	"net"
	"testing"

	"github.com/portd/portd/client"
)

// Who insists on the type gets it, by an option of the listener.
func TestListenTCPConn(t *testing.T) {
	p := newPortd(t)
	l := p.listen(client.ListenConfig{TCPConn: true}, "tcp/127.0.0.1:any")
	user, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		t.Fatalf("Accept returns a %T", c)
	}
	if _, err := io.WriteString(user, "hello"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(tcp, buf); err != nil || string(buf) != "hello" || tcp.RemoteAddr().String() != user.LocalAddr().String() {
		t.Errorf("%q from %v, %v", buf, tcp.RemoteAddr(), err)
	}
}
