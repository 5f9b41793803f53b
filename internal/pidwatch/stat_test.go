package pidwatch

import (
	"bytes"
	"os"
	"strconv"
	"testing"
)

func TestStartOf(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 23\n"
	for name, tt := range map[string]struct {
		stat string
		want int64
	}{
		"plain":            {"7 (sleep)" + rest, 4711},
		"a command's name": {"7 (a) S 1 ) (b c)" + rest, 4711},
		"cut off":          {"7 (sleep) S 1 2 3", 0},
		"nothing":          {"", 0},
	} {
		if got, err := startOf([]byte(tt.stat)); got != tt.want || (err == nil) != (tt.want != 0) {
			t.Errorf("%s: got %d, %v, want %d", name, got, err, tt.want)
		}
	}
}

func FuzzStartOf(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte("7 ()) R"))
	f.Fuzz(func(t *testing.T, stat []byte) {
		// What is no number of ticks is an error, and nothing is a panic.
		if start, err := startOf(stat); err == nil && !bytes.Contains(stat, strconv.AppendInt(nil, start, 10)) && !bytes.ContainsAny(stat, "+-0") {
			t.Errorf("%q has no %d", stat, start)
		}
	})
}
