package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	pb "github.com/portd/portd/proto/portd/v1"
)

// hostile is text that moves a terminal's cursor, in the ways of ASCII and of ISO 6429's 8 bits, turns the line around, hides,
// and pretends to be a line of portctl's own.
const hostile = "a\x1b[2J\u009b2J\u202eb\U000e0041\x7f\nportctl: try: rm -r ."

func TestHostileText(t *testing.T) {
	t.Parallel()
	var out, talk bytes.Buffer
	c := &ctl{out: bufio.NewWriter(&out), stderr: &talk}
	c.complain(try(errors.New("it says "+hostile), "portctl show "+hostile))
	c.say("it is %s", hostile)
	event := &pb.Event{Reason: hostile, Caller: hostile, Lease: &pb.Lease{Id: hostile}}
	if err := c.printEvents(&pb.WatchReservationsResponse{Events: []*pb.Event{event}}); err != nil {
		t.Fatal(err)
	}
	if err := c.printJSON(&pb.ServiceEntry{Notes: hostile}); err != nil {
		t.Fatal(err)
	}
	if err := c.out.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, got := range []string{out.String(), talk.String()} {
		if plain := strings.ReplaceAll(got, "\n", ""); plain != printable(plain) {
			t.Errorf("got %q", got)
		}
	}
	if n := strings.Count(talk.String(), "\n"); n != 3 {
		t.Errorf("%d lines of talk: %s", n, &talk)
	}
	_, last, _ := strings.Cut(out.String(), "\n")
	var same struct{ Notes string }
	if err := json.Unmarshal([]byte(last), &same); err != nil || same.Notes != hostile {
		t.Errorf("JSON has %q (%v)", same.Notes, err)
	}
}

func TestPrintable(t *testing.T) {
	if got, want := printable("a\x1b[31mb\u009b\u202ec\n\u0160t\u011bp\xff"), "a?[31mb??c?\u0160t\u011bp\ufffd"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// Where both streams end up in one place, talk stands after the lines that were printed before it.
func TestTalkAfterData(t *testing.T) {
	t.Parallel()
	var both bytes.Buffer
	code := run(t.Context(), []string{"whois", "--socket", t.TempDir() + "/no.sock", "-q", "22", "nosuchservice", "https"}, nil, &both, &both)
	if code != exitNotFound {
		t.Errorf("exit code %d", code)
	}
	at := 0
	for _, line := range []string{"ssh\n", "portctl: try: portctl search nosuchservice\n", "443\n"} {
		i := strings.Index(both.String()[at:], "\n"+line)
		if i < 0 {
			t.Fatalf("no %q in its place:\n%s", line, &both)
		}
		at += i
	}
}

// A remark is as long as it is; the columns of the rows around it stay one below the other.
func TestRemark(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	c := &ctl{out: bufio.NewWriter(&out)}
	table := c.table("ENDPOINT", "STATE", "NAME")
	table.row("tcp/8901", "lost", "")
	table.remark("  8901  lost: python3 (pid 11821, user root) is listening on 0.0.0.0:8901")
	table.row("tcp/127.0.0.1:8902", "listening", "web")
	for range 2 { // the second time there is nothing left
		if err := table.flush(); err != nil {
			t.Fatal(err)
		}
	}
	c.out.Flush()
	const want = `ENDPOINT            STATE      NAME
tcp/8901            lost
  8901  lost: python3 (pid 11821, user root) is listening on 0.0.0.0:8901
tcp/127.0.0.1:8902  listening  web
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}
