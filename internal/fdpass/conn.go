package fdpass

import (
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// SendConn sends payload with fds, which stay the caller's, over c; it waits for room until c's write deadline. Errors are those of
// [Sender.Send] except EAGAIN; on a stream, all of payload is sent.
func SendConn(c *net.UnixConn, payload []byte, fds []int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("send descriptors: %w", err)
	}
	var s Sender
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		for {
			var n int
			n, sendErr = s.send(int(fd), payload, fds)
			if sendErr != nil {
				return !errors.Is(sendErr, unix.EAGAIN)
			}
			if n == len(payload) {
				return true
			}
			payload, fds = payload[n:], nil // the descriptors went with the first part
		}
	})
	if err == nil {
		err = sendErr
	}
	if err != nil {
		return fmt.Errorf("send descriptors: %w", err)
	}
	return nil
}

// RecvConn receives one message (on a stream: what has arrived) from c; it waits for it until c's read deadline. Results and errors are those of
// [Receiver.Recv] except EAGAIN; io.EOF comes unwrapped. The slice fds is the caller's too.
func RecvConn(c *net.UnixConn, payload []byte) (n int, fds []int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, nil, fmt.Errorf("receive descriptors: %w", err)
	}
	var r Receiver
	var recvErr error
	err = raw.Read(func(fd uintptr) bool {
		n, fds, recvErr = r.Recv(int(fd), payload)
		return !errors.Is(recvErr, unix.EAGAIN)
	})
	switch {
	case err != nil:
		return 0, nil, fmt.Errorf("receive descriptors: %w", err)
	case recvErr != nil && !errors.Is(recvErr, io.EOF):
		return n, fds, fmt.Errorf("receive descriptors: %w", recvErr)
	}
	return n, fds, recvErr
}
