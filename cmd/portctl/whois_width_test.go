package main

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

// Prose is as wide as the terminal, within reason.
func TestWidth(t *testing.T) {
	master, slave, err := openTerminal()
	if err != nil {
		t.Skip("no pseudoterminals here: ", err)
	}
	defer master.Close()
	defer slave.Close()
	for columns, want := range map[uint16]int{0: usualWidth, 20: leastWidth, 60: 60, 300: mostWidth} {
		if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
			t.Fatal(err)
		}
		if got := (&ctl{stdout: slave}).width(); got != want {
			t.Errorf("a terminal of %d columns: %d wide, want %d", columns, got, want)
		}
	}
	if got := (&ctl{stdout: &bytes.Buffer{}}).width(); got != usualWidth {
		t.Errorf("no terminal: %d wide, want %d", got, usualWidth)
	}
}
