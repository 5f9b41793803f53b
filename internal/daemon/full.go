package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// newState is about how much room a state takes that nobody has put anything into, in bytes: the service registry, and a first journal.
const newState = 2 << 20

func noRoom(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// full says of a disk on which portd could not write what it must to begin, which one that is and what would help.
func (cfg Config) full(err error) error {
	var disk unix.Statfs_t
	where := mountPoint(cfg.StateDir)
	switch statErr := unix.Statfs(cfg.StateDir, &disk); {
	case errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("uid %d may take no more of the disk at %s, which has the state in %s: %w; remove something there, have the quota raised, "+
			"or name a directory on another disk with --state", os.Geteuid(), where, cfg.StateDir, plain(err))
	case statErr != nil:
		return fmt.Errorf("the disk at %s, which has the state in %s, is full: %w; make room there, or name a directory on another disk with --state",
			where, cfg.StateDir, plain(err))
	}
	return fmt.Errorf("the disk at %s, which has the state in %s, is full: %s of %s are free, and a new state takes %s: %w; make room there, or name a "+
		"directory on another disk with --state", where, cfg.StateDir, size(disk.Bavail*uint64(disk.Bsize)), size(disk.Blocks*uint64(disk.Bsize)), size(newState), plain(err))
}

// unwritten is what is left of an error with which the store was closed. Without room nothing is lost: what does not go into the database is
// in its journal.
func (cfg Config) unwritten(err error) error {
	if !noRoom(err) {
		return err
	}
	cfg.Log.Warn("the disk is full: the last changes stay in the journal beside the database, and the next start has them; leave the two together",
		"state", cfg.StateDir, "err", plain(err))
	return nil
}

// plain is the system's own part of an error, which says what was done to which file, where it has one.
func plain(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		return path
	case errors.As(err, &link):
		return link
	}
	return err
}

// mountPoint is where the file system begins that has a directory; bind mounts of one file system are one.
func mountPoint(dir string) string {
	var at, above unix.Stat_t
	for unix.Stat(dir, &at) == nil && unix.Stat(filepath.Dir(dir), &above) == nil && at.Dev == above.Dev && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
	}
	return dir
}

// size is a number of bytes as people say it.
func size(bytes uint64) string {
	switch {
	case bytes >= 10<<20:
		return fmt.Sprintf("%d MiB", bytes>>20)
	case bytes >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%d KiB", bytes>>10)
}
