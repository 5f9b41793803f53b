package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseQuestions(t *testing.T) {
	for _, tt := range []struct {
		args string
		want string // the questions as they print
		fail string
	}{
		{args: "443", want: "443"},
		{args: "tcp", want: "tcp"},
		{args: "tcp 443", want: "443/tcp"},
		{args: "443 tcp", want: "443/tcp"},
		{args: "TCP 443", want: "443/tcp"},
		{args: "udp4/127.0.0.1:53", want: "53/udp"},
		{args: "tcp/[::1]:8000-8009", want: "8000-8009/tcp"},
		{args: "443-443", want: "443"},
		{args: "0-65535", want: "0-65535"},
		{args: "802-11-iapp", want: "802-11-iapp"},
		{args: "cl/1 914c/g/udp", want: "cl/1 udp/914c/g"},
		{args: "443 80/udp https tcp 514 6000-6010", want: "443 80/udp https 514/tcp 6000-6010/tcp"},
		{args: "443 tcp 80", want: "443 80/tcp"},
		{args: "443 tcp 80 udp 22", want: "443 80/tcp 22/udp"},
		{args: "443 tcp 80 udp", want: "443/tcp 80/udp"},
		{args: "22 443 tcp", want: "22/tcp 443/tcp"},
		{args: "tcp 80 443 53/udp udp 22 https", want: "80/tcp 443/tcp 53/udp 22/udp https/udp"},
		{args: "22 udp 80/sctp 443 tcp", want: "22/udp 80/sctp 443/tcp"},
		{args: "tcp,udp 53", want: "53/tcp 53/udp"},
		{args: "cl/1/udp,tcp 53 tcp4", want: "udp/cl/1 tcp/cl/1 53/tcp"},
		{args: "tcp udp", want: "tcp udp"},
		{args: "SC:DISC dccp SC=x44495343 sc=1", want: "SC=1145656131 SC=1145656131 SC=1"},
		{args: "SC:/udp", want: "SC=796222576"}, // a slash is one of a code's characters

		{args: "", fail: "a port or the name of a service is missing"},
		{args: "tcp 443 udp", fail: "it is not clear what tcp is to go with; write it after a slash, as in 443/tcp"},
		{args: "tcp udp 443", fail: "it is not clear what tcp is to go with; write it after a slash, as in 443/tcp"},
		{args: "65536", fail: `"65536" is neither a port, 0 to 65535, nor the name of a service`},
		{args: "1-65536", fail: `"1-65536" is neither a port, 0 to 65535, nor the name of a service; write 1-65535`},
		{args: "6000-", fail: `"6000-" is neither a port, 0 to 65535, nor the name of a service; write 6000-65535`},
		{args: "6000:6010", fail: `"6000:6010" is neither a port, 0 to 65535, nor the name of a service; write 6000-6010`},
		{args: "443,80", fail: `"443,80" is neither a port, 0 to 65535, nor the name of a service; write 443 80`},
		{args: "443/", fail: `"443/" is neither a port, 0 to 65535, nor the name of a service; write 443 or 443/tcp`},
		{args: "/tcp", fail: `"/tcp" is neither a port, 0 to 65535, nor the name of a service; write 443/tcp`},
		{args: "443/tpc", fail: `"443/tpc": "tpc" is not a protocol; known are tcp, udp, sctp, dccp and udplite`},
		{args: "80-70", fail: `"80-70" runs backwards; write 70-80`},
		{args: "udp SC:DISC", fail: `"udp SC:DISC": only DCCP has service codes (RFC 4340 section 8.1.2)`},
		{args: "SC:DISCARD", fail: `service code "SC:DISCARD" has not one to four characters after SC: (RFC 4340, section 8.1.2)`},
	} {
		questions, err := parseQuestions(strings.Fields(tt.args), nil)
		var got []string
		for _, q := range questions {
			got = append(got, q.String())
		}
		fail := ""
		if err != nil {
			fail = err.Error()
		}
		if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" || fail != tt.fail {
			t.Errorf("%q: error %q, want %q; (-want +got):\n%s", tt.args, fail, tt.fail, diff)
		}
	}
}

// FuzzQuestions: what is understood prints as what is understood again, and what is not is wrong usage.
func FuzzQuestions(f *testing.F) {
	for _, s := range []string{
		"443", "tcp\n443", "443\ntcp\n80\nudp", "https/tcp\n6000-6010", "cl/1", "914c/g/udp", "SC:DISC", "dccp\nSC=x1", "sc:a/b", "tcp/udp",
		"udp/[::1]:53", "tcp\nudp", "0-65535", "9-1", "\x00", "", "udplite 9",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		questions, err := parseQuestions(strings.Split(text, "\n"), nil)
		if err != nil && exitCode(err) != exitUsage {
			t.Errorf("%q: exit code %d for %v", text, exitCode(err), err)
		}
		for _, q := range questions {
			if q.first > q.last || q.name != "" && !isName(q.name) {
				t.Errorf("%q: asks for %+v", text, q)
			}
			again, err := parseQuestion(q.String())
			if err != nil {
				t.Fatalf("%q is not read again: %v", q, err)
			}
			if diff := cmp.Diff(q.String(), again.String()); diff != "" {
				t.Errorf("%q (-want +got):\n%s", text, diff)
			}
		}
	})
}

func TestWrap(t *testing.T) {
	for _, tt := range []struct {
		text, want string
		width      int
	}{
		{"", "", 10},
		{"one two three", "one two|three", 7},
		{"one two three", "one two|three", 8},
		{"abcdefghij kl", "abcdefghij|kl", 4},
		{"kl abcdefghij", "kl|abcdefghij", 4},
		{"öäü öäü", "öäü|öäü", 3},
		{"öäü öäü", "öäü öäü", 7},
		{" a b", " a|b", 2},
	} {
		if got := strings.Join(wrap(tt.text, tt.width), "|"); got != tt.want {
			t.Errorf("wrap(%q, %d) = %q, want %q", tt.text, tt.width, got, tt.want)
		}
	}
}

func TestCell(t *testing.T) {
	long := strings.Repeat("long ", 12) // as wide as a line that was broken for its width
	for _, tt := range []struct{ name, cell, want string }{
		{"white space", "  a \t b\n\n  c\n", "a b|c"},
		{"a sentence goes on", long + "and\n      on", long + "and on"},
		{"a sentence has ended", long + "end.\nNext", long + "end.|Next"},
		{"items", long + "and\n* item\n* item", long + "and|* item|* item"},
		{"keys", long + "and\nkey=<value>\nother=<value>", long + "and|key=<value>|other=<value>"},
		{"a list of short ones", "unitary 126/tcp\nunitary 126/udp", "unitary 126/tcp|unitary 126/udp"},
	} {
		if got := strings.Join(cell(tt.cell), "|"); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestBrackets(t *testing.T) {
	for cell, want := range map[string]string{
		"[IESG]":                  "IESG",
		"[A][B_C]":                "A; B_C",
		"[RFC8765, Section\n6.1]": "RFC8765, Section 6.1",
		"plain":                   "plain",
		"[a [b]]":                 "[a [b]]",
		"[A] and [B]":             "[A] and [B]",
	} {
		if got := strings.Join(brackets(cell), "|"); got != want {
			t.Errorf("brackets(%q) = %q, want %q", cell, got, want)
		}
	}
}
