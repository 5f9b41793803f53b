package binder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/asuser"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/sockdiag"
)

// Unix endpoints (unix(7)). Whoever may write to the directory can take the file away and put another one there: a path is held as far
// as the directory's permissions hold it. The kernel refuses everybody else, for a bind does not replace a file. And as a bind never goes
// away with its socket, a file that nobody has open any more is replaced where it is its owner's own.

// A file is what a unix socket has, and with whose rights it was made.
type file struct {
	keep     *keeping
	path     string
	uid, gid uint32
	mode     uint32
	dev, ino uint64
	broken   bool // its socket has been shut down, and none has taken its place: see holdPathAgain
}

// ownerOnly is the mode of a file about which nothing was said.
const ownerOnly = 0o600

// bindPath holds the path of a unix endpoint.
func (b *Binder) bindPath(want *registry.Bind) (*socket, error) {
	f := &file{keep: &b.kept, path: want.Endpoint.Path, uid: want.As.UID, mode: uint32(want.Options.FileMode)}
	if f.mode == 0 {
		f.mode = ownerOnly
	}
	if c := want.As.Caller; c != nil {
		f.gid = c.GID
		if err := seesOurFiles(*c); err != nil {
			return nil, err
		}
	} else if f.gid = groupOf(f.uid); want.As.Group != nil {
		f.gid = *want.As.Group
	}
	if s := b.takePath(want.Endpoint, f); s != nil {
		return s, nil
	}
	limit, err := b.descriptorLimit()
	if err != nil {
		return nil, err
	}
	fd, err := f.open(limit)
	if err != nil {
		return nil, f.explain(err)
	}
	s := &socket{fd: fd, ep: want.Endpoint, file: f}
	if err := s.stat(); err != nil {
		_ = f.remove()
		s.close()
		return nil, err
	}
	b.kept.put(s)
	return s, nil
}

// open makes a socket that is bound to the file.
func (f *file) open(limit int) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if fd >= limit {
		_ = unix.Close(fd)
		return -1, exhausted(fmt.Errorf("the last of %s are kept for connections and files", openFiles()))
	}
	// The file gets the mode of the socket, as far as portd's umask lets it: never more than was asked for.
	if err := unix.Fchmod(fd, f.mode); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("mode of a socket: %w", err)
	}
	if err := asuser.Run(f.uid, f.gid, func() error { return f.bind(fd) }); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// bind runs with the rights of the file's owner.
func (f *file) bind(fd int) error {
	err := unix.Bind(fd, &unix.SockaddrUnix{Name: f.path})
	if errors.Is(err, unix.EADDRINUSE) {
		if err := f.removeLeftover(); err != nil {
			return err
		}
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: f.path})
	}
	if err != nil {
		return err
	}
	if err := f.setMode(); err != nil {
		_ = f.removeOurs()
		return err
	}
	return nil
}

// setMode gives the new file its mode, and notes which file it is. The directory may be another user's, who may have put something else
// there by now: neither a symlink to a file of ours nor another link to one is to get that mode.
func (f *file) setMode() error {
	at, err := unix.Open(f.path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || st.Uid != f.uid || st.Nlink != 1 {
		return unix.EADDRINUSE
	}
	f.dev, f.ino = st.Dev, st.Ino
	if st.Mode&0o7777 == f.mode {
		return nil
	}
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", at), f.mode)
}

// removeLeftover takes away a socket file that nobody has open any more, if it is the owner's.
func (f *file) removeLeftover() error {
	dir, err := f.directory()
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	switch err := unix.Fstatat(dir, filepath.Base(f.path), &st, unix.AT_SYMLINK_NOFOLLOW); {
	case errors.Is(err, unix.ENOENT): // somebody else was faster
		return nil
	case err != nil:
		return err
	}
	taken := &registry.TakenError{Want: registry.Endpoint{Netns: registry.HostNetns, Proto: registry.Unix, Path: f.path}}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		taken.Why = "a file is there that is no socket; move it away, or choose another path"
		return taken
	}
	holders, err := socketsOf(&st)
	switch {
	case len(holders) > 0:
		return taken // whose they are is looked for by who asks
	case st.Uid != f.uid:
		taken.Why = fmt.Sprintf("the file was left there by %s, and portd sees no program that has it open; its owner or root can remove it", registry.UserName(st.Uid))
		return taken
	case err == nil && connects(f.path):
		taken.Why = "a program in another network namespace has it"
		return taken
	case err != nil && connects(f.path):
		taken.Why = "a program has it, which this kernel does not show (sock_diag)"
		return taken
	}
	if err := unix.Unlinkat(dir, filepath.Base(f.path), 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// directory is a descriptor of the file's: what is looked at through it and then removed is in the same one, whatever becomes of the
// names on the way there.
func (f *file) directory() (int, error) {
	return unix.Open(filepath.Dir(f.path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// connects says whether a program listens there.
func connects(path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	return !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT)
}

// remove takes the file away, if it is still there and ours.
func (f *file) remove() error { return asuser.Run(f.uid, f.gid, f.removeOurs) }

func (f *file) removeOurs() error {
	dir, err := f.directory()
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	if err := unix.Fstatat(dir, filepath.Base(f.path), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Dev != f.dev || st.Ino != f.ino {
		return nil
	}
	return unix.Unlinkat(dir, filepath.Base(f.path), 0)
}

// listen is listen(2) with the name of the file's owner: clients who ask whose socket it is (SO_PEERCRED) are told who called that.
func (f *file) listen(fd, backlog int) error {
	if err := asuser.Run(f.uid, f.gid, func() error { return unix.Listen(fd, backlog) }); err != nil {
		return f.explain(err)
	}
	return nil
}

// holdPathAgain puts a new socket in the place of one that has listened: the kernel lets no unix socket listen again after shutdown(2).
// The descriptor keeps its number. Where it fails there is nothing at the path, until it is called again.
func (s *socket) holdPathAgain() error {
	_ = unix.Shutdown(s.fd, unix.SHUT_RDWR)
	s.file.broken = true
	if err := s.file.remove(); err != nil {
		return s.file.explain(err)
	}
	limit, err := maxDescriptors()
	if err != nil {
		return err
	}
	fd, err := s.file.open(limit)
	if err != nil {
		return s.file.explain(err)
	}
	defer unix.Close(fd)
	if err := s.file.keep.replace(s, fd); err != nil {
		return fmt.Errorf("hold %v after it listened: %w", s.ep, err)
	}
	s.file.broken = false
	return s.stat()
}

// broken says whether the socket is to be made anew before it can listen.
func (s *socket) broken() bool { return s.file != nil && s.file.broken }

// explain says what an errno of bind(2) means for a path.
func (f *file) explain(err error) error {
	dir := filepath.Dir(f.path)
	who := registry.UserName(f.uid)
	wrong := func(format string, args ...any) error {
		return &registry.InvalidError{Field: "path", Reason: f.path + ": " + fmt.Sprintf(format, args...)}
	}
	switch {
	case errors.Is(err, registry.ErrTaken):
		return err
	case errors.Is(err, asuser.ErrCannot):
		return noCapability("unix"+f.path, fmt.Sprintf("portd makes the file of %s with that user's rights: %v", who, err))
	case errors.Is(err, unix.EADDRINUSE):
		return &registry.TakenError{
			Want: registry.Endpoint{Netns: registry.HostNetns, Proto: registry.Unix, Path: f.path}, Why: "somebody else was faster",
		}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return &registry.DeniedError{
			Caller: registry.UIDPrincipal(f.uid), Act: "reserve unix" + f.path, Rule: fmt.Sprintf("the file system does not let %s make a file there (%v)", who, err),
		}
	case errors.Is(err, unix.ENOENT):
		return wrong("there is no directory %s; make it first", dir)
	case errors.Is(err, unix.ENOTDIR):
		return wrong("%s is not a directory", dir)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return wrong("%v", err)
	case errors.Is(err, unix.EROFS):
		return wrong("its file system is read-only")
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return exhausted(fmt.Errorf("%s: no space for a file there (%w)", f.path, err))
	}
	return ranOut(err)
}

// socketsOf are the unix sockets that have a file.
func socketsOf(st *unix.Stat_t) ([]sockdiag.UnixSocket, error) {
	all, err := sockdiag.ListUnix()
	var its []sockdiag.UnixSocket
	for _, s := range all {
		// What was accepted has the listener's file too.
		if s.FileNumber == uint32(st.Ino) && s.Major == unix.Major(st.Dev) && s.Minor == unix.Minor(st.Dev) && s.State != sockdiag.Established {
			its = append(its, s)
		}
	}
	return its, err
}

// pathHolders are the sockets of others that have a path.
func (b *Binder) pathHolders(ctx context.Context, ep registry.Endpoint) ([]registry.Holder, error) {
	var st unix.Stat_t
	if err := unix.Lstat(ep.Path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, nil
	}
	socks, err := socketsOf(&st)
	if err != nil {
		return nil, err
	}
	var holders []registry.Holder
	var inodes []uint64
	b.mu.Lock()
	for _, s := range socks {
		own := false
		for _, o := range b.at[spotOf(ep)] {
			own = own || o.inode.Load() == s.Inode
		}
		if own {
			continue
		}
		h := registry.Holder{Endpoint: ep, State: registry.SocketBound, UID: s.UID}
		if s.State == sockdiag.Listening {
			h.State = registry.SocketListening
		}
		holders, inodes = append(holders, h), append(inodes, s.Inode)
	}
	b.mu.Unlock()
	return addProcesses(ctx, holders, inodes)
}

// seesOurFiles refuses callers to whom a path may mean another file.
func seesOurFiles(c registry.Caller) error {
	elsewhere := func(why string) error {
		return &registry.UnsupportedError{What: "a path", Why: why + "; reserve it from outside, and share the directory", Code: "MOUNT_NAMESPACE"}
	}
	if c.PID == 0 {
		return elsewhere("you are in another pid namespace, and may see other files than portd does")
	}
	for _, what := range []string{"ns/mnt", "root"} {
		ours, err := os.Stat("/proc/self/" + what)
		if err != nil {
			return fmt.Errorf("see which files are portd's: %w", err)
		}
		theirs, err := os.Stat(filepath.Join("/proc", strconv.Itoa(int(c.PID)), what))
		switch {
		case errors.Is(err, fs.ErrPermission):
			return elsewhere("portd may not see whether your files are those that it sees")
		case err != nil:
			return fmt.Errorf("see which files are the caller's: %w", err)
		case !os.SameFile(ours, theirs):
			return elsewhere("you are in another mount namespace or root directory, where it may be another file")
		}
	}
	return nil
}

// groupOf is the group that a user has when he logs in, or nobody's.
func groupOf(uid uint32) uint32 {
	const nogroup = 65534
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return nogroup
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nogroup
	}
	return uint32(gid)
}
