package boltstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// keptCopies is how many of the copies that portd makes by itself are there: a file that goes bad without anybody reading it
// is found by the next copy, and the ones before it stay then.
const keptCopies = 3

const copyInfix = ".copy-"

// firstCopy is how long after the start the first copy is made, at the latest: not while everybody comes back.
const firstCopy = time.Minute

// Copies are the copies that portd has made by itself of the store at path, the newest first. They are backups.
func Copies(path string) ([]string, error) {
	all, err := filepath.Glob(globbed(path) + copyInfix + "*Z")
	slices.Sort(all) // by the time in their names
	slices.Reverse(all)
	return all, err
}

// globbed is a pattern of path alone.
func globbed(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

// NewestCopy is the newest of Copies that is whole. The error is fs.ErrNotExist where there is none, with what is the matter
// with those that are there.
func NewestCopy(ctx context.Context, path string) (file string, info BackupInfo, err error) {
	all, err := Copies(path)
	if err != nil {
		return "", info, err
	}
	none := &noCopyError{path: path}
	for _, file := range all {
		info, err := checkBackupFile(ctx, file)
		if err == nil {
			return file, info, nil
		}
		none.why = append(none.why, err.Error())
	}
	return "", info, none
}

// A noCopyError is that there is no copy that is whole.
type noCopyError struct {
	path string
	why  []string // of each that there is
}

func (e *noCopyError) Is(target error) bool { return target == fs.ErrNotExist }

func (e *noCopyError) Error() string {
	if len(e.why) == 0 {
		return "there is no copy of " + e.path + " that portd has made by itself"
	}
	return fmt.Sprintf("no copy of %s is whole: %s", e.path, strings.Join(e.why, "; "))
}

func checkBackupFile(ctx context.Context, path string) (BackupInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return BackupInfo{}, err
	}
	defer f.Close()
	info, err := CheckBackup(ctx, f)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return info, err
}

// keepCopies makes a copy each time that so much time has passed and something has changed, until stop is closed. To make it
// each record is read, so that damage is found by it, too.
func (s *Store) keepCopies() {
	if s.opt.Copies <= 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-s.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	copied := registry.Revision(-1)
	wait := min(firstCopy, s.opt.Copies)
	if all, err := Copies(s.path); err == nil && len(all) > 0 {
		if f, err := os.Open(all[0]); err == nil {
			if in, err := openBackup(f); err == nil && in.info.StoreID == s.id {
				copied = in.info.Revision
				wait = max(wait, s.opt.Copies-time.Since(in.info.Time))
			}
			f.Close()
		}
	}
	next := time.NewTimer(min(wait, s.opt.Copies))
	defer next.Stop()
	for {
		select {
		case <-next.C:
		case <-s.stop:
			return
		}
		next.Reset(s.opt.Copies)
		if now, err := s.revision(); err != nil || now == copied {
			continue
		}
		info, err := s.copyNow(ctx)
		switch {
		case err == nil:
			copied = info.Revision
		case ctx.Err() != nil:
		case errors.Is(err, ErrDamaged):
			s.opt.Log.Error("the state is damaged, and cannot be copied as a whole; the copies from before are kept", "file", s.path, "err", err)
		default:
			s.opt.Log.Warn("the hourly copy of the state could not be made", "file", s.path, "err", err)
		}
	}
}

func (s *Store) revision() (registry.Revision, error) {
	if err := s.lock(); err != nil {
		return 0, err
	}
	defer s.writer.Unlock()
	return s.rev, nil
}

// copyNow makes a copy beside the store, and removes those that are too many.
func (s *Store) copyNow(ctx context.Context) (info BackupInfo, err error) {
	if err := s.roomForCopy(); err != nil {
		return info, err
	}
	if err := writeFile(copyingPath(s.path), func(w io.Writer) (name string, err error) {
		info, err = s.Backup(ctx, w)
		return s.path + copyInfix + info.Time.UTC().Format("20060102T150405.000") + "Z", err
	}); err != nil {
		return info, err
	}
	all, err := Copies(s.path)
	for _, old := range all[min(keptCopies, len(all)):] {
		err = errors.Join(err, removeIfThere(old))
	}
	return info, err
}

// roomForCopy leaves the disk to what must be written: a copy is made only where it takes a quarter of what is free at most.
func (s *Store) roomForCopy() error {
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	if free, known := freeOn(s.file); known && free/4 < info.Size() {
		return fmt.Errorf("%w: %d bytes are free, and the state has %d", unix.ENOSPC, free, info.Size())
	}
	return nil
}

// freeOn is how many bytes can still be written to the disk that has f, where that is known: some file systems do not say.
func freeOn(f *os.File) (bytes int64, known bool) {
	var disk unix.Statfs_t
	err := unix.Fstatfs(int(f.Fd()), &disk)
	return int64(disk.Bavail) * disk.Bsize, err == nil && disk.Blocks > 0
}

// writeFile makes a file in one step, as far as others can see: what is written goes into one that is called aside, which gets the
// name that write returns once it is on the disk. Where that fails nothing is left.
func writeFile(aside string, write func(io.Writer) (name string, err error)) (err error) {
	f, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeIfThere(aside))
		}
	}()
	name, err := write(io.NewOffsetWriter(f, 0))
	if err == nil {
		err = datasync(f)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(aside, name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}
