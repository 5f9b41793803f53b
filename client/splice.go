package client

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ReadFrom sends what r has: by sendfile from a regular file, by splice from a socket, else by copying.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	src, limit := r, int64(1<<63-1)
	var limited *io.LimitedReader
	if l, ok := r.(*io.LimitedReader); ok {
		limited, src, limit = l, l.R, max(l.N, 0)
	}
	n, handled, err := c.readFrom(src, limit)
	if limited != nil {
		limited.N -= n
	}
	if handled {
		return n, c.opErrorOrNil("readfrom", err)
	}
	return io.Copy(writerOnly{c}, r)
}

func (c *conn) readFrom(src io.Reader, limit int64) (n int64, handled bool, err error) {
	if f, ok := src.(*os.File); ok {
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			return 0, false, nil
		}
		return c.sendFile(f, limit)
	}
	from, ok := socketOf(src)
	if !ok {
		return 0, false, nil
	}
	to, err := c.rawConn()
	if err != nil {
		return 0, true, err
	}
	return spliceAll(to, from, limit)
}

// WriteTo sends what the connection receives to w, by splice where w is a socket.
func (c *conn) WriteTo(w io.Writer) (int64, error) {
	if to, ok := socketOf(w); ok {
		from, err := c.rawConn()
		if err != nil {
			return 0, c.opError("writeto", err)
		}
		if n, handled, err := spliceAll(to, from, 1<<63-1); handled {
			return n, c.opErrorOrNil("writeto", err)
		}
	}
	return io.Copy(w, readerOnly{c})
}

// The methods that io.Copy would call again are hidden.
type (
	writerOnly struct{ io.Writer }
	readerOnly struct{ io.Reader }
)

// socketOf is the descriptor behind the stream sockets that may be bypassed. A type that merely embeds one may have a Read of its own.
func socketOf(v any) (syscall.RawConn, bool) {
	var sc syscall.Conn
	switch v := v.(type) {
	case *net.TCPConn:
		sc = v
	case *net.UnixConn:
		if v.LocalAddr().Network() != "unix" {
			return nil, false
		}
		sc = v
	case *conn:
		sc = v
	default:
		return nil, false
	}
	raw, err := sc.SyscallConn()
	return raw, err == nil
}

// maxChunk is what one call is asked to move.
const maxChunk = 1 << 20

func (c *conn) sendFile(f *os.File, limit int64) (n int64, handled bool, err error) {
	to, err := c.rawConn()
	if err != nil {
		return 0, true, err
	}
	from, err := f.SyscallConn()
	if err != nil {
		return 0, false, nil
	}
	handled = true
	cerr := from.Control(func(src uintptr) {
		for n < limit && err == nil {
			moved, eof := 0, false
			werr := to.Write(func(dst uintptr) bool {
				for {
					moved, err = unix.Sendfile(int(dst), int(src), nil, int(min(limit-n, maxChunk)))
					if err != unix.EINTR {
						break
					}
				}
				return err != unix.EAGAIN
			})
			switch {
			case werr != nil:
				err = werr
			case n == 0 && (err == unix.EINVAL || err == unix.ENOSYS): // a file system that cannot
				handled, err = false, nil
				return
			case err == nil:
				n += int64(moved)
				eof = moved == 0
			}
			if eof {
				return
			}
		}
	})
	if cerr != nil {
		return n, n > 0, cerr
	}
	return n, handled, err
}

// spliceAll moves bytes from one socket to another through a pipe until the end of the stream or the limit.
func spliceAll(to, from syscall.RawConn, limit int64) (n int64, handled bool, err error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return 0, false, nil
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	const flags = unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK
	for n < limit {
		var in int64
		rerr := from.Read(func(fd uintptr) bool {
			in, err = splice(int(fd), pipe[1], int(min(limit-n, maxChunk)), flags)
			return err != unix.EAGAIN
		})
		switch {
		case rerr != nil:
			return n, true, rerr
		case n == 0 && err == unix.EINVAL:
			return 0, false, nil
		case err != nil || in == 0:
			return n, true, err
		}
		for in > 0 {
			var out int64
			werr := to.Write(func(fd uintptr) bool {
				out, err = splice(pipe[0], int(fd), int(in), flags)
				return err != unix.EAGAIN
			})
			if werr != nil {
				err = werr
			}
			if err != nil {
				return n, true, err
			}
			in, n = in-out, n+out
		}
	}
	return n, true, nil
}

func splice(from, to, size, flags int) (int64, error) {
	for {
		n, err := unix.Splice(from, nil, to, nil, size, flags)
		if err != unix.EINTR {
			return n, err
		}
	}
}
