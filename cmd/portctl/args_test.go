package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	pb "github.com/portd/portd/proto/portd/v1"
)

func TestWords(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"tcp/8080", "tcp/8080"},
		{"tcp 8080", "tcp 8080"},
		{"tcp 8080|web", "tcp 8080|web"},
		{"tcp,udp 53|udp4 any", "tcp,udp 53|udp4 any"},
		{"web|tcp", "web|tcp"}, // a protocol with nothing after it is what portd makes of it
		{"https/tcp|tcp https", "https/tcp|tcp https"},
	} {
		args := strings.FieldsFunc(tt.args, func(r rune) bool { return r == ' ' || r == '|' })
		if diff := cmp.Diff(strings.Split(tt.want, "|"), words(args)); diff != "" {
			t.Errorf("words(%q) (-want +got):\n%s", args, diff)
		}
	}
}

// FuzzArgs holds what portctl reads from its arguments against what it must be, whatever they are.
func FuzzArgs(f *testing.F) {
	for _, s := range []string{
		"443", "tcp\n443", "https/tcp", "cl/1", "tcp,udp/53", "tcp/[::1]:80", "udp4\nany", "65536", "tcp/", "/tcp", "8000-8099",
		"tcp/*%eth0:80", "\x00", "", "::1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		args := words(strings.Split(text, "\n"))
		if q, err := parseQuestion(text); err == nil && q.name != "" && !isName(q.name) {
			t.Errorf("parseQuestion(%q) asks for %q", text, q.name)
		}
		if req, err := (reserveFlags{addresses: []string{text}, choice: choiceFlags{count: 1}}).toRequest(args); err == nil && len(req.GetSpec().GetEndpoints()) != len(args) {
			t.Errorf("%q: %d endpoints of %d", args, len(req.GetSpec().GetEndpoints()), len(args))
		}
		ports := &pb.AnyPorts{}
		if err := (choiceFlags{prefer: text, count: 1}).put("tcp/any", ports); err == nil && text != "" &&
			ports.GetPreferService() == "" && (ports.GetPreferPort() == 0 || ports.GetPreferPort() > 65535) {
			t.Errorf("--prefer %q prefers %v", text, ports)
		}
		if r, err := parseRange(text); err == nil && (r.GetFirst() == 0 || r.GetFirst() > r.GetLast() || r.GetLast() > 65535) {
			t.Errorf("parseRange(%q) = %v", text, r)
		}
		if _, err := (listFlags{}).toFilter(args); err != nil && exitCode(err) != exitUsage {
			t.Errorf("list %q: exit code %d", args, exitCode(err))
		}
	})
}
