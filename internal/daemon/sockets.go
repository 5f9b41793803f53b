package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
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

// inherited are the sockets that the service manager passed by LISTEN_FDS (sd_listen_fds(3)), by their names. A name
// that portd does not know is an error, for nobody would serve that socket.
func inherited() (map[string]*net.UnixListener, error) {
	lns := map[string]*net.UnixListener{}
	var errs []error
	for _, f := range activation.Files(true) {
		name := f.Name()
		ln, err := unixListener(f)
		switch {
		case name != "control" && name != "handoff":
			err = fmt.Errorf("LISTEN_FDS has a socket named %q; portd knows control and handoff (FileDescriptorName= in the socket unit)", name)
		case err != nil:
			err = fmt.Errorf("the socket %s from LISTEN_FDS: %w", name, err)
		case lns[name] != nil:
			err = fmt.Errorf("LISTEN_FDS has two sockets named %s", name)
		}
		if err != nil {
			errs = append(errs, err)
			if ln != nil {
				ln.Close()
			}
			continue
		}
		lns[name] = ln
	}
	if want, ok := lns["handoff"]; ok {
		if typ, err := socketType(want); err != nil || typ != unix.SOCK_SEQPACKET {
			errs = append(errs, errors.New("the socket handoff from LISTEN_FDS is not of type SOCK_SEQPACKET (ListenSequentialPacket= in the socket unit)"))
		}
	}
	if want, ok := lns["control"]; ok {
		if typ, err := socketType(want); err != nil || typ != unix.SOCK_STREAM {
			errs = append(errs, errors.New("the socket control from LISTEN_FDS is not of type SOCK_STREAM (ListenStream= in the socket unit)"))
		}
	}
	if err := errors.Join(errs...); err != nil {
		for _, ln := range lns {
			ln.Close()
		}
		return nil, err
	}
	return lns, nil
}

// unixListener takes f, which it closes.
func unixListener(f *os.File) (*net.UnixListener, error) {
	defer f.Close()
	accepts, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
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
	ul.SetUnlinkOnClose(false) // its file is the service manager's
	return ul, nil
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
