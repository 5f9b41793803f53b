package daemon

import (
	"errors"
	"fmt"
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
		"stopped on a full disk": {unwritten(fmt.Errorf("write: %w", unix.ENOSPC)), unix.ENOSPC, "the next start has them"},
		"stopped on a bad disk":  {unwritten(fmt.Errorf("write: %w", unix.EIO)), unix.EIO, ""},
	} {
		t.Run(name, func(t *testing.T) {
			text := tt.said.Error()
			plain := text == "open: "+tt.errno.Error() || text == "write: "+tt.errno.Error()
			if !errors.Is(tt.said, tt.errno) || plain != (tt.want == "") || !strings.Contains(text, tt.want) {
				t.Errorf("it says %q, want %q", text, tt.want)
			}
		})
	}
	if err := unwritten(nil); err != nil {
		t.Errorf("a store that was closed: %v", err)
	}
}
