package netns

import (
	"errors"
	"io/fs"
	"maps"
	"os"

	"golang.org/x/sys/unix"
)

// looks is how often in a row nobody is seen in a namespace before it is gone: a process that moves, or that forks and exits,
// may be where a look has been already, or not yet.
const looks = 2

// Gone are those of the kept ones in which no process has a thread any more, and that no name and no mount leads to. It is
// meant to be asked every second or so, and says of none that it is gone the first time that it sees nobody there. Where it
// cannot look it says so in the log, and of none that it is gone; where portd does not see every process, of none in which it has
// never seen anybody.
func (h *Host) Gone(names []string) (gone []string) {
	left := map[uint64]string{} // of those not seen yet, by inode
	h.mu.Lock()
	for _, name := range names {
		if k := h.kept[name]; k != nil {
			left[k.Inode] = name
		}
	}
	h.mu.Unlock()
	all := maps.Clone(left)
	if err := (&lookout{h: h, left: left}).look(); err != nil {
		h.mu.Lock()
		h.cannotLookLocked(err)
		h.mu.Unlock()
		clear(left)
	}
	hidden := outOfSight()
	h.mu.Lock()
	defer h.mu.Unlock()
	for inode, name := range all {
		k := h.kept[name]
		switch _, unseen := left[inode]; {
		case k == nil || k.Inode != inode: // dropped meanwhile
		case !unseen:
			delete(h.unseen, name)
			k.seen = true
		case hidden != nil && !k.seen:
			h.cannotLookLocked(hidden)
		default:
			if h.unseen[name]++; h.unseen[name] >= looks {
				gone = append(gone, name)
			}
		}
	}
	return gone
}

// A lookout looks for whoever may be in some namespaces.
type lookout struct {
	h    *Host
	left map[uint64]string // names by inode of those in which nobody was seen yet
	devs map[uint64]uint64 // inodes by that of /proc/net/dev, once they are asked for
}

// look takes away those that are seen: first where it is cheap, then thread by thread.
func (l *lookout) look() error {
	entries, _ := os.ReadDir(l.h.dir)
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Stat(l.h.dir+"/"+e.Name(), &st) == nil {
			delete(l.left, st.Ino)
		}
	}
	if err := mounts(func(inode uint64, _ string) { delete(l.left, inode) }); err != nil {
		return err
	}
	if err := processes(l.see); err != nil || len(l.left) == 0 {
		return err
	}
	// A thread of a program may be elsewhere than its first one.
	return processes(func(dir string) error {
		tasks, err := os.ReadDir(dir + "/task")
		if err != nil {
			return unlessGone(err)
		}
		for _, t := range tasks {
			if err := l.see(dir + "/task/" + t.Name()); err != nil {
				return err
			}
		}
		return nil
	})
}

// see takes away the one that a process or thread lives in, whose directory under /proc is dir.
func (l *lookout) see(dir string) error {
	if len(l.left) == 0 {
		return fs.SkipAll
	}
	to, err := os.Readlink(dir + "/ns/net")
	if errors.Is(err, fs.ErrPermission) {
		return l.seeByDev(dir)
	}
	if err != nil {
		return unlessGone(err)
	}
	if inode, ok := parseLink(to); ok {
		delete(l.left, inode)
	}
	return nil
}

// seeByDev is see for a process that portd may not look into, for it may see which /proc/net that has. The files in there are
// others for each namespace, and so are their inodes.
func (l *lookout) seeByDev(dir string) error {
	if l.devs == nil {
		l.devs = map[uint64]uint64{}
		for inode, name := range l.left {
			var st unix.Stat_t
			if err := l.h.Enter(name, func() error { return unix.Stat("/proc/thread-self/net/dev", &st) }); err != nil {
				return err
			}
			l.devs[st.Ino] = inode
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(dir+"/net/dev", &st); err != nil {
		return unlessGone(err)
	}
	delete(l.left, l.devs[st.Ino])
	return nil
}

// unlessGone leaves out the errors of processes that have ended.
func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// initPIDs is the inode number of the pid namespace that all others are in (PROC_PID_INIT_INO in the kernel).
const initPIDs = 0xEFFFFFFC

// outOfSight says why there may be processes that this /proc does not show, or nil.
func outOfSight() error {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		return err
	}
	if st.Ino != initPIDs {
		return errors.New("portd is in a pid namespace, and sees no process outside of it")
	}
	if err := unix.Stat("/proc/1", &st); err != nil {
		return errors.New("/proc hides processes (hidepid, see proc(5)), and portd lacks CAP_SYS_PTRACE")
	}
	return nil
}

// cannotLookLocked tells the log once.
func (h *Host) cannotLookLocked(err error) {
	if !h.blind {
		h.blind = true
		h.log.Warn("cannot see whether anybody is left in a network namespace; its reservations go on", "err", err)
	}
}
