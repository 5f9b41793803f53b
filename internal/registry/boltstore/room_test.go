package boltstore

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry/storetest"
)

// On a disk that is nearly full the journal takes no room that the file needs.
func TestDiskNearlyFull(t *testing.T) {
	if os.Getenv(envFaulty) == "" {
		rerun(t, &exec.Cmd{Env: append(os.Environ(), envFaulty+"=1"), SysProcAttr: ownMounts()})
		return
	}
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, s *Store, leave func(pages int64), commit func(bytes int) error)
	}{
		{"as it grows", func(t *testing.T, s *Store, leave func(int64), commit func(int) error) {
			for range 2 {
				if err := commit(90_000); err != nil {
					t.Fatal(err)
				}
			}
			leave(150) // it would grow by 192
			if err := s.checkpoint(); err != nil {
				t.Error(err)
			}
			if info, err := s.journal.file.Stat(); err != nil || info.Size() != firstSize {
				t.Errorf("the journal is %d bytes long, want %d (%v)", info.Size(), firstSize, err)
			}
		}},
		{"as it begins", func(_ *testing.T, _ *Store, leave func(int64), _ func(int) error) {
			leave(firstSize/block + 1) // and nothing for the transaction by which the file would know it
		}},
		{"before it begins", func(_ *testing.T, _ *Store, leave func(int64), _ func(int) error) {
			leave(firstSize/block - 1)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
				t.Skipf("needs to mount a small file system: %v", err)
			}
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			s, err := Open(filepath.Join(dir, "portd.db"), Options{Delay: -1, Journal: 4 * firstSize})
			if err != nil {
				t.Fatal(err)
			}
			var m storetest.Model
			commit := func(bytes int) error {
				changes := sizedChange(m.Revision, bytes)
				err := s.Commit(t.Context(), m.Revision, changes)
				if err == nil {
					m.Apply(changes...)
				}
				return err
			}
			leave := func(pages int64) {
				t.Helper()
				var disk unix.Statfs_t
				if err := unix.Statfs(dir, &disk); err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(dir, "ballast"), make([]byte, (int64(disk.Bavail)-pages)*disk.Bsize))
			}
			tt.do(t, s, leave, commit)
			if err := commit(10); err != nil {
				t.Error(err)
			}
			m.Check(t, s)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if names := list(t, dir); len(names) != 2 {
				t.Errorf("there is %v", names)
			}
			s = mustOpen(t, filepath.Join(dir, "portd.db"))
			m.Check(t, s)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
