package etcservices_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A glibc is the real C library with a services file of ours, and nothing else, in its /etc.
type glibc struct{ bin, etc string }

// newGlibc skips the test where there is no C compiler, no GNU C library or no mount namespace to be had.
func newGlibc(t testing.TB, services []byte) *glibc {
	t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("needs a C compiler: ", err)
	}
	dir := t.TempDir()
	g := &glibc{bin: filepath.Join(dir, "getserv"), etc: filepath.Join(dir, "etc")}
	if out, err := exec.Command(cc, "-O2", "-o", g.bin, "testdata/getserv.c").CombinedOutput(); err != nil {
		t.Skipf("needs a C compiler with headers: %v\n%s", err, out)
	}
	if err := os.Mkdir(g.etc, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"services": services, "nsswitch.conf": []byte("services: files\n")} {
		if err := os.WriteFile(filepath.Join(g.etc, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g.run(t, "")
	return g
}

// run returns the lines that testdata/getserv.c prints.
func (g *glibc) run(t testing.TB, stdin string, args ...string) []string {
	t.Helper()
	cmd := exec.Command(g.bin, append([]string{g.etc}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 77 {
		t.Skipf("needs the GNU C library with a file of ours over /etc/services: %s", &stderr)
	}
	if err != nil {
		t.Fatalf("getserv %q: %v\n%s", args, err, &stderr)
	}
	return strings.FieldsFunc(stdout.String(), func(r rune) bool { return r == '\n' })
}

// A question is one to getservbyname, or without a name to getservbyport.
type question struct {
	name  string
	port  uint16
	proto string // "" is a null pointer
}

// String returns the question as testdata/getserv.c reads it.
func (q question) String() string {
	proto := q.proto
	if proto == "" {
		proto = "-"
	}
	if q.name == "" {
		return fmt.Sprintf("port %d %s", q.port, proto)
	}
	return fmt.Sprintf("name %s %s", q.name, proto)
}

// A servent is struct servent. The zero value says that there is none.
type servent struct {
	Names []string // with the aliases
	Port  uint16
	Proto string
}

// String returns the service as "http 80/tcp", or "none".
func (s servent) String() string {
	if s.Names == nil {
		return "none"
	}
	return fmt.Sprintf("%s %d/%s", s.Names[0], s.Port, s.Proto)
}

// ask puts questions in one process.
func (g *glibc) ask(t testing.TB, qs []question) map[question]servent {
	t.Helper()
	var in strings.Builder
	for _, q := range qs {
		fmt.Fprintln(&in, q)
	}
	lines := g.run(t, in.String())
	if len(lines) != len(qs) {
		t.Fatalf("%d answers to %d questions", len(lines), len(qs))
	}
	answers := make(map[question]servent)
	for i, q := range qs {
		answers[q] = parseServent(t, lines[i])
	}
	return answers
}

// all reads the whole file with getservent.
func (g *glibc) all(t testing.TB) []servent {
	t.Helper()
	var all []servent
	for _, l := range g.run(t, "all\n") {
		all = append(all, parseServent(t, l))
	}
	return all
}

func parseServent(t testing.TB, line string) servent {
	t.Helper()
	f := strings.Split(line, " ")
	if line == "-" {
		return servent{}
	}
	port, err := strconv.ParseUint(f[1], 10, 16)
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return servent{Names: append([]string{f[0]}, f[3:]...), Port: uint16(port), Proto: f[2]}
}
