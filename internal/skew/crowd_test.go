package skew_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A crowd is clients of one port, who connect again and again and want an answer.
type crowd struct {
	where string
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu                             sync.Mutex
	served, refused, reset, others int
	odd                            error // the last of the others
}

// gather has clients connect, two at a time, until the test ends.
func (s *stage) gather(where string, ask func(net.Conn) error) {
	ctx, cancel := context.WithCancel(s.Context())
	c := &crowd{where: where, stop: cancel}
	s.crowds = append(s.crowds, c)
	for range 2 {
		c.wg.Go(func() {
			for ctx.Err() == nil {
				c.count(visit(where, ask))
			}
		})
	}
	s.Cleanup(c.end)
}

// end returns when the last client has gone.
func (c *crowd) end() {
	c.stop()
	c.wg.Wait()
}

func visit(where string, ask func(net.Conn) error) error {
	conn, err := net.DialTimeout("tcp", where, 20*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	// A reset at the end leaves no TIME_WAIT, of which there would be more than there are ports.
	_ = conn.(*net.TCPConn).SetLinger(0)
	return ask(conn)
}

// echoes says something and wants it back.
func echoes(conn net.Conn) error {
	question, answer := bytes.Repeat([]byte("?"), 64), make([]byte, 64)
	if _, err := conn.Write(question); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if !bytes.Equal(question, answer) {
		return fmt.Errorf("the answer is %q", answer)
	}
	return nil
}

// greets asks an http-worker, which says who asks.
func greets(conn net.Conn) error {
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: portd\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if !strings.HasSuffix(string(body), " "+conn.LocalAddr().String()+"\n") {
		return fmt.Errorf("%s to %v: %q", answer.Status, conn.LocalAddr(), body)
	}
	return nil
}

func (c *crowd) count(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.served++
	case errors.Is(err, unix.ECONNREFUSED):
		c.refused++
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		c.reset++
	default:
		c.others++
		c.odd = err
	}
}

func (c *crowd) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := fmt.Sprintf("%s: %d served, %d refused, %d reset", c.where, c.served, c.refused, c.reset)
	if c.others > 0 {
		text += fmt.Sprintf(", %d others (%v)", c.others, c.odd)
	}
	return text
}

// content fails the test where any client was not served.
func (s *stage) content() {
	s.Helper()
	for _, c := range s.crowds {
		c.mu.Lock()
		bad := c.refused+c.reset+c.others > 0 || c.served == 0
		c.mu.Unlock()
		if bad {
			s.Errorf("%v", c)
		}
	}
}

// finish has the clients leave, and then the workers, and fails the test where any of them was not content.
func (s *stage) finish() {
	s.Helper()
	for _, c := range s.crowds {
		c.end()
		s.Log(c)
	}
	s.drain()
	s.content()
}
