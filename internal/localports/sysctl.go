package localports

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Path is the sysctl, of the network namespace of whoever opens it.
const Path = "/proc/sys/net/ipv4/ip_local_reserved_ports"

const (
	// maxWrite is what the kernel takes of one write: a page less one byte (proc_do_large_bitmap), on the smallest pages that
	// there are.
	maxWrite = 4095
	// patience is how long it is tried to be alone with the sysctl.
	patience = 100 * time.Millisecond
)

var (
	// errBusy says that somebody else has had the sysctl open all the time.
	errBusy = errors.New("another program has had it open all the time")
	// errTooLong says that some ports do not fit into one write, which is what replaces the others.
	errTooLong = errors.New("the entries that must stay do not fit into one write")
)

// A sysctl is the open file.
type sysctl struct {
	fd    int
	alone bool // nobody else changes it
	buf   []byte
}

func open(flags int) (*sysctl, error) {
	for {
		fd, err := unix.Open(Path, flags|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			return &sysctl{fd: fd, buf: make([]byte, 4096)}, nil
		case !errors.Is(err, unix.EINTR):
			return nil, fmt.Errorf("open %s: %w", Path, err)
		}
	}
}

// close ends being alone as well.
func (s *sysctl) close() { _ = unix.Close(s.fd) }

// openAlone opens the sysctl so that what is read stays true until it is closed. A write lease (F_SETLEASE, fcntl(2)) does
// that: it is granted where nobody else has the file open, and whoever opens it then waits. Where there are no leases, or portd
// may have none, a lock (flock(2)) keeps out other portds at least. Where somebody has had it open all the time it is open, and
// alone is false.
func openAlone() (*sysctl, error) {
	for deadline := time.Now().Add(patience); ; {
		s, err := open(unix.O_RDWR)
		if err != nil {
			return nil, err
		}
		_, err = unix.FcntlInt(uintptr(s.fd), unix.F_SETLEASE, unix.F_WRLCK)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			err = unix.Flock(s.fd, unix.LOCK_EX|unix.LOCK_NB)
		}
		s.alone = err == nil
		if s.alone || time.Now().After(deadline) {
			return s, nil
		}
		// Two who wait with the file open would wait for one another.
		s.close()
		time.Sleep(time.Millisecond + rand.N(4*time.Millisecond))
	}
}

// read is the ports that the kernel gives to nobody who asks for any.
func (s *sysctl) read() (*portSet, error) {
	text, err := s.text()
	if err != nil {
		return nil, err
	}
	ports, err := parsePorts(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", Path, err)
	}
	return ports, nil
}

func (s *sysctl) text() (string, error) {
	for {
		n, err := unix.Pread(s.fd, s.buf, 0)
		if err != nil {
			return "", fmt.Errorf("read %s: %w", Path, err)
		}
		// A read that ends before the text does is all that the kernel gives, so it must be one.
		if n < len(s.buf)-len(",65535-65535") {
			return strings.TrimSpace(string(s.buf[:n])), nil
		}
		s.buf = make([]byte, 4*len(s.buf))
	}
}

// add adds ports and takes none away: what is written elsewhere than at the beginning of the file the kernel joins to what it has.
func (s *sysctl) add(ports *portSet) error {
	for _, text := range writes(ports) {
		if err := s.write(text, 1); err != nil {
			return err
		}
	}
	return nil
}

// replace makes ports all that there are. Those of keep are in the first write, the one that takes others away, so that they are
// there at any time. The error is errTooLong where they do not fit, and nothing has changed then.
func (s *sysctl) replace(ports, keep *portSet) error {
	first := make([]byte, 0, maxWrite+len(",65535-65535"))
	late := *ports
	for _, kept := range []bool{true, false} {
		for from, to := range ports.runs {
			if keep.hasAny(from, to) != kept {
				continue
			}
			text := appendRun(first, from, to)
			if len(text) >= maxWrite {
				if kept {
					return errTooLong
				}
				break
			}
			first = text
			late.removeRange(from, to)
		}
	}
	if err := s.write(append(first, '\n'), 0); err != nil {
		return err
	}
	return s.add(&late)
}

// writes are texts that the kernel takes whole and that are the ports together.
func writes(ports *portSet) (texts [][]byte) {
	var text []byte
	for first, last := range ports.runs {
		longer := appendRun(text, first, last)
		if len(longer) >= maxWrite {
			texts = append(texts, append(text, '\n'))
			longer = appendRun(nil, first, last)
		}
		text = longer
	}
	if len(text) > 0 {
		texts = append(texts, append(text, '\n'))
	}
	return texts
}

func (s *sysctl) write(text []byte, at int64) error {
	n, err := unix.Pwrite(s.fd, text, at)
	if err == nil && n < len(text) {
		err = fmt.Errorf("the kernel took %d of %d bytes", n, len(text))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", Path, err)
	}
	return nil
}
