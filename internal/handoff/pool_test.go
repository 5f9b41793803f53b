package handoff_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/portd/portd/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

var noDeadline time.Time

func TestOneConnection(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1", "::"} {
		t.Run(addr, func(t *testing.T) {
			h := newHost(t)
			res := h.listen(addr)
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
			defer s.Close()
			if s.RemoteAddr().String() != c.LocalAddr().String() || s.LocalAddr().String() != c.RemoteAddr().String() {
				t.Errorf("worker sees %v → %v, client %v → %v", s.RemoteAddr(), s.LocalAddr(), c.LocalAddr(), c.RemoteAddr())
			}
			if _, err := io.WriteString(s, "hello"); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 5)
			if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "hello" {
				t.Errorf("%q, %v", buf, err)
			}
		})
	}
}
