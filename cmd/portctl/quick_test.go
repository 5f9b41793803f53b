package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// quick is a directory with what the scripts exec, hundreds of commands of one call each. Under the race detector each of them would
// take five times as long, most of it to begin, so they are this test binary built without it. What runs in the background, portd
// and the commands that stay and do several things at a time, is under it all the same, and with PORTD_LONG=1 everything is.
// It is "" where the commands are good as they are.
func quick(t *testing.T) string {
	t.Helper()
	if !raceEnabled || os.Getenv("PORTD_LONG") != "" {
		return ""
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if out, err := exec.Command("go", "test", "-c", "-ldflags=-s -w", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build the commands without the race detector: %v\n%s", err, out)
	}
	slow, err := os.ReadDir(filepath.SplitList(os.Getenv("PATH"))[0]) // where testscript.Main has put them
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range slow {
		if err := os.Symlink(program, filepath.Join(dir, command.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
