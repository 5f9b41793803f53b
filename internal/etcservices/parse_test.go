package etcservices_test

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// serviceLine is services(5), narrowed to what Write writes.
var serviceLine = regexp.MustCompile(`^([!-"$-~]+) +([0-9]{1,5})/(tcp|udp|sctp|dccp)((?: +[!-"$-~]+)*)(?: *|  *# .+)$`)

// parse reads services(5) strictly: a line that it does not know fails the test.
func parse(t testing.TB, file []byte) []servent {
	t.Helper()
	var all []servent
	for line := range strings.Lines(string(file)) {
		line, ended := strings.CutSuffix(line, "\n")
		switch {
		case !ended || len(line) >= 127:
			t.Fatalf("%d bytes without an end of line: %q", len(line), line)
		case !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }):
			t.Fatalf("not printable: %q", line)
		case line == "" || line[0] == '#':
			continue
		}
		m := serviceLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("not services(5): %q", line)
		}
		port, err := strconv.ParseUint(m[2], 10, 16)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, servent{Names: append([]string{m[1]}, strings.Fields(m[4])...), Port: uint16(port), Proto: m[3]})
	}
	return all
}
