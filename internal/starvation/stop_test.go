package starvation_test

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A stop where no file may grow is a stop, and portd says that something of it failed.
func TestStopsWithoutRoomForFiles(t *testing.T) {
	t.Parallel()
	p := prepare(t)
	log, theirs, err := os.Pipe() // its own log is a file, too
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.Stderr, p.keeperEnds = theirs, true
	p.begin(t)
	theirs.Close()
	if _, err := reserve(within(t, 10*time.Second), p.Client(t), "kept"); err != nil {
		t.Fatal(err)
	}
	p.limit(t, unix.RLIMIT_FSIZE, 0)
	if err := p.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := log.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(log) // to the end of all who write there
	if err != nil || strings.Contains(string(said), "cannot go on") || !strings.Contains(string(said), "portd has stopped, and something of that failed") {
		t.Errorf("it says, %v:\n%s", err, said)
	}
}
