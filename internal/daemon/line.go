package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// protocol is what two portds say to each other. One that says another number is refused; what is only added to it, lines that the other
// one does not know, is passed over.
const protocol = "1"

// A line is the socket between two daemons of which one takes the place of the other. A message is lines of KEY=value, the first of which
// says what it is: HELLO, PREPARED, GOOD or FAILED of the new one, STORE, YOURS or LEFT of the old one. What is given goes the same way, in
// the words of package fdstore.
type line struct {
	fd    int
	other int // pidfd of the process at the other end, whose holder may keep its socket open for longer
}

func (l *line) close() {
	for _, fd := range []*int{&l.fd, &l.other} {
		if *fd >= 0 {
			_ = unix.Close(*fd)
			*fd = -1
		}
	}
}

func (l *line) say(lines ...string) error {
	err := unix.Sendto(l.fd, []byte(strings.Join(lines, "\n")), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
	if err != nil {
		return fmt.Errorf("tell the other portd %s: %w", lines[0], err)
	}
	return nil
}

// A saying is a message: its lines by their keys.
type saying map[string]string

// hear waits for a message that is one of these. FAILED, and everything unexpected, is an error.
func (l *line) hear(within time.Duration, want string) (saying, error) {
	s, err := l.next(within)
	if err != nil {
		return nil, err
	}
	if why, failed := s["REASON"]; failed {
		return nil, errors.New(why)
	}
	if s[want] != "1" {
		return nil, fmt.Errorf("it says something else than %s", want)
	}
	return s, nil
}

var errEnded = errors.New("it has ended")

func (l *line) next(within time.Duration) (saying, error) {
	buf := make([]byte, 4096)
	for until := time.Now().Add(within); ; {
		n, _, err := unix.Recvfrom(l.fd, buf, unix.MSG_DONTWAIT)
		switch {
		case err == nil && n > 0:
			return parseSaying(string(buf[:n])), nil
		case err == nil:
			return nil, fmt.Errorf("%w: %w", errEnded, io.EOF)
		case err != unix.EAGAIN && err != unix.EINTR:
			return nil, fmt.Errorf("%w: %w", errEnded, err)
		}
		left := time.Until(until)
		if left <= 0 {
			return nil, fmt.Errorf("it has said nothing for %v: %w", within, os.ErrDeadlineExceeded)
		}
		fds := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}, {Fd: int32(l.other), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return nil, err
		}
		if fds[0].Revents == 0 && fds[1].Revents != 0 {
			return nil, errEnded
		}
	}
}

func parseSaying(text string) saying {
	s := make(saying)
	for text != "" {
		var one string
		one, text, _ = strings.Cut(text, "\n")
		key, value, _ := strings.Cut(one, "=")
		if key == "REASON" { // the last, and it may have several lines
			value, text = strings.TrimSuffix(value+"\n"+text, "\n"), ""
		}
		s[key] = value
	}
	return s
}

// ended waits for the end of the process at the other end, and says whether that has come.
func (l *line) ended(within time.Duration) bool {
	until := time.Now().Add(within)
	for {
		fds := []unix.PollFd{{Fd: int32(l.other), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(0, time.Until(until)).Milliseconds())+1)
		if n > 0 {
			return true
		}
		if err != unix.EINTR && time.Now().After(until) {
			return false
		}
	}
}

func (l *line) kill() { _ = unix.PidfdSendSignal(l.other, unix.SIGKILL, nil, 0) } // ESRCH: it has ended
