package skew_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A release is the programs of one state of the tree.
type release struct {
	name string
	src  string // its tree
	bin  string // directory of its programs
	echo string // its worker in C; empty where there is no C compiler
}

func (r *release) String() string { return r.name }
func (r *release) portd() string  { return filepath.Join(r.bin, "portd") }

// releases are the one before this one, and this one.
func releases(t *testing.T) (older, newer *release) {
	t.Helper()
	both, err := built()
	var missing missingError
	switch {
	case errors.As(err, &missing):
		t.Skip(missing)
	case err != nil:
		t.Fatal(err)
	}
	return both[0], both[1]
}

// A missingError says what a machine lacks for these tests, which is no fault of a release.
type missingError string

func (e missingError) Error() string { return string(e) }

// envRevision overrides the file previous: the release before this one, as git knows it. "1" only has the tests run.
const envRevision = "PORTD_SKEW"

var built = sync.OnceValues(func() (both [2]*release, err error) {
	dir, err := os.MkdirTemp("", "portd")
	if err != nil {
		return both, err
	}
	leftovers = append(leftovers, dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return both, err
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		return both, err
	}
	older := &release{name: "old", src: filepath.Join(dir, "src"), bin: filepath.Join(dir, "old")}
	newer := &release{name: "new", src: root, bin: filepath.Join(dir, "new")}
	if err := checkOut(root, older.src); err != nil {
		return both, err
	}
	for _, r := range []*release{older, newer} {
		if err := r.build(); err != nil {
			return both, fmt.Errorf("build the %s release: %w", r, err)
		}
	}
	return [2]*release{older, newer}, nil
})

// checkOut puts the tree of the release before this one into a directory.
func checkOut(root, dir string) error {
	revision := os.Getenv(envRevision)
	if revision == "" || revision == "1" {
		text, err := os.ReadFile("previous")
		if err != nil {
			return err
		}
		revision = strings.TrimSpace(string(text))
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	archive := dir + ".tar"
	if out, err := exec.Command("git", "-C", root, "archive", "-o", archive, revision).CombinedOutput(); err != nil {
		return missingError(fmt.Sprintf("needs the release before this one from the history of a clone: git archive %s: %v: %s", revision, err, bytes.TrimSpace(out)))
	}
	if out, err := exec.Command("tar", "-x", "-C", dir, "-f", archive).CombinedOutput(); err != nil {
		return fmt.Errorf("tar: %w: %s", err, out)
	}
	return os.Remove(archive)
}

// build builds the programs from what is on this machine: there is no network here. Without its path in them the tree of before need be
// compiled only once.
func (r *release) build() error {
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-o", r.bin+"/", "./cmd/portd", "./cmd/portctl", "./examples/http-worker")
	build.Dir = r.src
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOPROXY=off", "GOFLAGS=-mod=readonly", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		if strings.Contains(string(out), "GOPROXY=off") {
			return missingError(fmt.Sprintf("needs the modules of the %s release in the module cache; \"go mod download\" with its go.mod brings them: %s", r, bytes.TrimSpace(out)))
		}
		return fmt.Errorf("%w: %s", err, out)
	}
	cc, err := exec.LookPath("cc")
	if err != nil {
		return nil
	}
	r.echo = filepath.Join(r.bin, "echo")
	if out, err := exec.Command(cc, "-std=c11", "-O2", "-o", r.echo, filepath.Join(r.src, "clients/c/echo.c")).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

var leftovers []string // removed after all tests
