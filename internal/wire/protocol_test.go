package wire_test

import (
	"encoding/hex"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/portd/portd/internal/wire"
)

// The examples of docs/PROTOCOL.md are what this package writes and reads.
func TestProtocolExamples(t *testing.T) {
	doc, err := os.ReadFile("../../docs/PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{
		"attach": wire.AppendAttach(nil, wire.Attach{
			MinVersion: 1, MaxVersion: 1, Wishes: []wire.Wish{{Reference: "tcp/8080", Want: wire.WantConnections, Ready: true}},
		}),
		"attached": wire.AppendAttached(nil, wire.Attached{
			Version: 1, Room: 1, ID: "wrk_q6lzpffaxxanuxqgjwil", Token: []byte("0123456789abcdef"),
			Listeners: []wire.Listener{{Reservation: "rsv_cgiauzhkpr5vrdkl4ip4", Endpoint: "tcp/8080"}},
		}),
		"connections": frame(1,
			wire.Connection{Accepted: 1700000000000000000, Peer: ip("192.0.2.7:40000")},
			wire.Connection{
				Accepted: 1700000000000001000, Flags: wire.Redelivered,
				Peer: ip("[2001:db8::7]:40001"), Local: ip("[2001:db8::1]:8080"),
			}),
		"sockets":       wire.AppendSockets(nil, false),
		"ready":         wire.AppendReady(nil, 0),
		"drain":         wire.AppendDrain(nil, wire.AllListeners),
		"drained":       wire.AppendDrained(nil, wire.Drained{Sent: 2}),
		"give back":     wire.AppendGiveBack(nil),
		"probe":         wire.AppendProbe(nil),
		"refused":       wire.AppendRefused(nil, wire.Refused{Code: 9, Text: "tcp/8080 does not listen: portctl listen tcp/8080"}),
		"listener gone": wire.AppendListenerGone(nil, wire.ListenerGone{Reason: "released"}),
	}
	got := map[string][]byte{}
	bytesOf := regexp.MustCompile(`^(?:[0-9a-f]{2} {1,2})*[0-9a-f]{2}(?:  |$)`)
	for _, block := range regexp.MustCompile("(?s)```hex ([a-z ]+)\n(.*?)```").FindAllStringSubmatch(string(doc), -1) {
		var packet []byte
		for line := range strings.Lines(block[2]) {
			digits := bytesOf.FindString(strings.TrimRight(line, "\n"))
			b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
			if err != nil || len(b) == 0 {
				t.Fatalf("%s: %q: %v", block[1], line, err)
			}
			packet = append(packet, b...)
		}
		got[block[1]] = packet
		if _, err := decode(packet); err != nil {
			t.Errorf("%s: %v", block[1], err)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
