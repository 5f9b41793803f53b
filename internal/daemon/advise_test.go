package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What keeps portd from its state comes with the next step, and stays the error that it was.
func TestAdviceOfTheSystemsErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		said  error
		errno unix.Errno
		want  string // "": nothing is added
	}{
		"read-only file system":  {Config{}.advise(fmt.Errorf("open: %w", unix.EROFS)), unix.EROFS, "portd --read-only"},
		"there with --read-only": {Config{ReadOnly: true}.advise(fmt.Errorf("open: %w", unix.EROFS)), unix.EROFS, ""},
		"another user's":         {Config{StateDir: "/state"}.advise(fmt.Errorf("open: %w", unix.EACCES)), unix.EACCES, "the state in /state"},
		"input and output":       {Config{}.advise(fmt.Errorf("open: %w", unix.EIO)), unix.EIO, ""},
		"a full disk":            {Config{StateDir: "/"}.advise(fmt.Errorf("start: %w", unix.ENOSPC)), unix.ENOSPC, "the disk at /, which has the state in /, is full: "},
		"a quota":                {Config{StateDir: "/"}.advise(fmt.Errorf("start: %w", unix.EDQUOT)), unix.EDQUOT, "may take no more of the disk at /"},
		"no state, --read-only":  {Config{ReadOnly: true, StateDir: "/none"}.advise(fmt.Errorf("open: %w", unix.ENOENT)), unix.ENOENT, "there is no state in /none"},
	} {
		t.Run(name, func(t *testing.T) {
			text := tt.said.Error()
			plain := text == "open: "+tt.errno.Error() || text == "write: "+tt.errno.Error()
			if !errors.Is(tt.said, tt.errno) || plain != (tt.want == "") || !strings.Contains(text, tt.want) {
				t.Errorf("it says %q, want %q", text, tt.want)
			}
		})
	}
}

// A stop on a full disk is one at which nothing is lost, which is said; on a bad disk it is not.
func TestStopOnFullDisk(t *testing.T) {
	var log bytes.Buffer
	cfg := Config{StateDir: "/state", Log: slog.New(slog.NewTextHandler(&log, nil))}
	for _, err := range []error{nil, unix.EIO} {
		if got := cfg.unwritten(err); got != err || log.Len() > 0 {
			t.Errorf("%v: %v, and it says %s", err, got, &log)
		}
	}
	if err := cfg.unwritten(&fs.PathError{Op: "write", Path: "/state/portd.db", Err: unix.ENOSPC}); err != nil || !strings.Contains(log.String(), "the next start has them") {
		t.Errorf("%v, and it says %s", err, &log)
	}
}
