package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxSunPath is what sun_path holds without its final zero (unix(7)).
const maxSunPath = 107

// makeDir makes a directory of portd's, or takes one that is there, if nobody but root and portd can write to it: who
// can, could replace what is in it.
func makeDir(path string, mode fs.FileMode) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	switch {
	case st.Uid != 0 && int(st.Uid) != os.Getuid():
		return fmt.Errorf("%s belongs to uid %d; it must belong to root or to uid %d, which portd runs as", path, st.Uid, os.Getuid())
	case st.Mode&unix.S_ISVTX != 0 && st.Mode&0o022 != 0:
		return fmt.Errorf("%s is for everybody's files (mode %04o); choose a directory of portd's own", path, st.Mode&0o7777)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("%s can be written to by others (mode %04o); run chmod go-w on it, or choose another directory", path, st.Mode&0o7777)
	}
	return nil
}

// A door is a socket that portd serves, and a descriptor of it that is there for the keeper for as long as the daemon is.
type door struct {
	*net.UnixListener
	name string
	file *os.File
}

func (d *door) close() {
	_ = d.UnixListener.Close()
	_ = d.file.Close()
}

// openDoor is the socket of that name that somebody kept or passed, as it is, or one of portd's own; the keeper has it either way. It is
// the caller's to close.
func (o *origin) openDoor(name, network, path string) (_ *door, err error) {
	d := &door{name: name}
	if fd, ok := o.take(name); ok {
		d.file = os.NewFile(uintptr(fd), name)
		if d.UnixListener, err = served(name, network, d.file); err != nil {
			_ = d.file.Close()
			return nil, err
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			o.keep.Put(name, fd)
			return d, nil
		}
		o.log.Warn("the file of a socket that portd serves has been removed; it is made anew", "path", path)
		o.keep.Remove(name)
		d.close()
	}
	if d.UnixListener, err = listen(network, path, socketMode()); err != nil {
		return nil, fmt.Errorf("%s socket: %w", name, err)
	}
	fd, err := duplicate(d.UnixListener)
	if err != nil {
		_ = d.UnixListener.Close()
		return nil, fmt.Errorf("%s socket: %w", name, err)
	}
	d.file = os.NewFile(uintptr(fd), name)
	o.keep.Put(name, fd)
	return d, nil
}

// served is a listener on a duplicate of f, if that is a socket as portd serves it.
func served(name, network string, f *os.File) (*net.UnixListener, error) {
	ln, err := unixListener(f)
	if err != nil {
		return nil, fmt.Errorf("the socket %s from LISTEN_FDS: %w", name, err)
	}
	want, typ, unit := unix.SOCK_STREAM, "SOCK_STREAM", "ListenStream="
	if network == "unixpacket" {
		want, typ, unit = unix.SOCK_SEQPACKET, "SOCK_SEQPACKET", "ListenSequentialPacket="
	}
	if got, err := socketType(ln); err != nil || got != want {
		ln.Close()
		return nil, fmt.Errorf("the socket %s from LISTEN_FDS is not of type %s (%s in the socket unit)", name, typ, unit)
	}
	return ln, nil
}

// unixListener is a listener on a duplicate of f.
func unixListener(f *os.File) (*net.UnixListener, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var accepts int
	cerr := raw.Control(func(fd uintptr) { accepts, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN) })
	if err := errors.Join(cerr, err); err != nil {
		return nil, err
	}
	if accepts == 0 { // net.FileListener takes connected sockets too
		return nil, errors.New("does not listen")
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	ul, ok := ln.(*net.UnixListener)
	if !ok {
		ln.Close()
		return nil, errors.New("is not a unix socket")
	}
	ul.SetUnlinkOnClose(false) // its file is the service manager's, or the next portd's
	return ul, nil
}

func duplicate(ln *net.UnixListener) (fd int, err error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := raw.Control(func(of uintptr) { fd, err = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(cerr, err)
}

func socketType(ln *net.UnixListener) (typ int, err error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) { typ, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE) })
	return typ, errors.Join(cerr, err)
}

// listen makes a unix socket of portd's own. Only who has the lock may call it: what lies at the path is a dead
// daemon's, and is replaced.
func listen(network, path string, mode fs.FileMode) (*net.UnixListener, error) {
	if len(path) > maxSunPath {
		return nil, fmt.Errorf("the socket path %s has %d bytes; the kernel takes %d: choose a shorter --socket", path, len(path), maxSunPath)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeSocket == 0 {
		return nil, fmt.Errorf("%s is there and is not a socket; remove it or choose another --socket", path)
	}
	// Bound and made ready under a name of its own, then put in place: nobody meets a socket that refuses.
	tmp := filepath.Join(filepath.Dir(path), "."+strings.TrimSuffix(filepath.Base(path), ".sock"))
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix(network, &net.UnixAddr{Name: tmp, Net: network})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	err = os.Chmod(tmp, mode)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		ln.Close()
		os.Remove(tmp)
		return nil, err
	}
	return ln, nil
}
