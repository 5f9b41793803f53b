package skew_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/portd/portd/internal/nstest"
)

type actor struct{ *testing.M }

func TestMain(m *testing.M) { nstest.Main(actor{m}) }

func (a actor) Run() int {
	defer func() {
		for _, dir := range leftovers {
			os.RemoveAll(dir)
		}
	}()
	return a.M.Run()
}

// directions runs a test in which one release meets the other, both ways.
func directions(t *testing.T, test func(t *testing.T, first, second *release)) {
	t.Helper()
	if os.Getenv("PORTD_LONG") == "" && os.Getenv(envRevision) == "" {
		t.Skipf("builds two releases; set PORTD_LONG=1 or %s=1", envRevision)
	}
	nstest.Need(t)
	older, newer := releases(t)
	for _, way := range [][2]*release{{older, newer}, {newer, older}} {
		t.Run(fmt.Sprintf("%v meets %v", way[0], way[1]), func(t *testing.T) { test(t, way[0], way[1]) })
	}
}
