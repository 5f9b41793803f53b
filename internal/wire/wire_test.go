package wire_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/quick"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/portd/portd/internal/wire"
)

var (
	token  = []byte("0123456789abcdef")
	tlvs   = wire.AppendTLV(wire.AppendTLV(nil, 7, []byte("seven")), 9, nil)
	attach = wire.Attach{
		MinVersion: 1, MaxVersion: 3, Room: 2, Token: token, Generation: "v2", TLVs: tlvs,
		Wishes: []wire.Wish{
			{Reference: "tcp/8080", Want: wire.WantConnections, Ready: true},
			{Reference: "web", Want: wire.WantSocket, Draining: true, Weight: 300, Priority: 2, TLVs: tlvs},
		},
	}
	attached = wire.Attached{
		Version: 1, Kept: true, More: true, Room: 1, ID: "wrk_abc", Token: token, TLVs: tlvs,
		Listeners: []wire.Listener{
			{Number: 0, Wish: 1, Index: 2, Sockets: 300, Reservation: "rsv_1", Endpoint: "tcp/8080", TLVs: tlvs},
			{Number: 1, Reservation: "rsv_2", Endpoint: "udp/53"},
		},
	}
	refused = wire.Refused{Code: wire.CodeDenied, Text: "it is not yours", TLVs: tlvs}
	drained = wire.Drained{Listener: 3, Sent: 1 << 40, TLVs: tlvs}
	gone    = wire.ListenerGone{Listener: 4, Reason: "released", TLVs: tlvs}
	conns   = []wire.Connection{
		{Listener: 1, Accepted: 1 << 60, Flags: wire.Redelivered, Peer: ip("192.0.2.1:40000"), Local: ip("192.0.2.2:80"), TLVs: tlvs},
		{Listener: 2, Accepted: -1, Peer: scoped(ip("[fe80::1]:1"), 3)},
		{Peer: wire.Addr{Family: wire.FamilyUnix, Path: []byte("/run/x.sock")}, Local: wire.Addr{Family: wire.FamilyUnix, Path: []byte{}}},
	}
)

func ip(s string) wire.Addr { return wire.AddrOf(netip.MustParseAddrPort(s)) }

func scoped(a wire.Addr, scope uint32) wire.Addr {
	a.Scope = scope
	return a
}

func frame(sequence uint64, conns ...wire.Connection) []byte {
	b := wire.BeginFrame(nil, sequence)
	for i := range conns {
		b = wire.AppendConnection(b, &conns[i])
	}
	return wire.EndFrame(b)
}

// decode reads any message whole, a frame as its connections.
func decode(packet []byte) (any, error) {
	m, err := wire.Parse(packet)
	if err != nil {
		return nil, err
	}
	switch m.Type {
	case wire.TypeAttach:
		return wire.DecodeAttach(m)
	case wire.TypeAttached:
		return wire.DecodeAttached(m)
	case wire.TypeSockets:
		return wire.DecodeSockets(m)
	case wire.TypeRefused:
		return wire.DecodeRefused(m)
	case wire.TypeReady, wire.TypeDrain:
		return wire.DecodeNumber(m)
	case wire.TypeDrained:
		return wire.DecodeDrained(m)
	case wire.TypeListenerGone:
		return wire.DecodeListenerGone(m)
	case wire.TypeConnections:
		f, err := wire.DecodeFrame(m)
		if err != nil {
			return nil, err
		}
		var all []wire.Connection
		for c := (wire.Connection{}); f.Next(&c); {
			all = append(all, c)
		}
		return all, nil
	}
	return nil, nil
}

var messages = []struct {
	name   string
	packet []byte
	want   any
}{
	{"attach", wire.AppendAttach(nil, attach), attach},
	{"attached", wire.AppendAttached(nil, attached), attached},
	{"sockets", wire.AppendSockets(nil, true), true},
	{"last sockets", wire.AppendSockets(nil, false), false},
	{"refused", wire.AppendRefused(nil, refused), refused},
	{"ready", wire.AppendReady(nil, 5), uint32(5)},
	{"drain", wire.AppendDrain(nil, wire.AllListeners), wire.AllListeners},
	{"drained", wire.AppendDrained(nil, drained), drained},
	{"listener gone", wire.AppendListenerGone(nil, gone), gone},
	{"connections", frame(12, conns...), conns},
}

func TestRoundTrip(t *testing.T) {
	for _, tt := range messages {
		t.Run(tt.name, func(t *testing.T) {
			// What follows the length is padding.
			got, err := decode(append(tt.packet[:len(tt.packet):len(tt.packet)], make([]byte, 99)...))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A message may be cut anywhere and bear any length; the decoders must notice, but for an end that leaves a whole message.
func TestCutShort(t *testing.T) {
	for _, tt := range messages {
		t.Run(tt.name, func(t *testing.T) {
			for n := range tt.packet {
				if _, err := wire.Parse(tt.packet[:n]); !errors.Is(err, wire.ErrMalformed) {
					t.Fatalf("cut to %d bytes: %v", n, err)
				}
				if n < wire.HeaderSize {
					continue
				}
				cut := append([]byte(nil), tt.packet[:n]...)
				binary.LittleEndian.PutUint32(cut[4:], uint32(n))
				if got, err := decode(cut); err == nil && cmp.Equal(tt.want, got, cmpopts.EquateEmpty()) && n < len(tt.packet)-len(tlvs) {
					t.Errorf("cut to %d of %d bytes it reads the same", n, len(tt.packet))
				} else if err != nil && !errors.Is(err, wire.ErrMalformed) {
					t.Errorf("cut to %d bytes: %v", n, err)
				}
			}
		})
	}
}

func TestExtensionsAreSkipped(t *testing.T) {
	for _, tt := range messages {
		more := wire.AppendTLV(nil, 999, []byte("of the future"))
		packet := append(tt.packet[:len(tt.packet):len(tt.packet)], more...)
		binary.LittleEndian.PutUint32(packet[4:], uint32(len(packet)))
		if _, err := decode(packet); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		packet = packet[:len(packet)-1]
		binary.LittleEndian.PutUint32(packet[4:], uint32(len(packet)))
		if _, err := decode(packet); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s with half an extension: %v", tt.name, err)
		}
	}
	got := map[uint16]string{}
	for kind, value := range tlvs.All() {
		got[kind] = string(value)
	}
	if diff := cmp.Diff(map[uint16]string{7: "seven", 9: ""}, got); diff != "" {
		t.Error(diff)
	}
}

// An address of a family that is not known yet reads as an absent one, and what follows it is found.
func TestUnknownFamily(t *testing.T) {
	packet := frame(1, wire.Connection{Peer: ip("192.0.2.1:1"), Local: ip("192.0.2.2:2")})
	const family = 20 + 2 + 4 + 8 + 4
	if packet[family] != byte(wire.FamilyIPv4) {
		t.Fatal("the peer's family is elsewhere")
	}
	packet[family] = 77
	got, err := decode(packet)
	if diff := cmp.Diff([]wire.Connection{{Local: ip("192.0.2.2:2")}}, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestBounds(t *testing.T) {
	many := attach
	many.Wishes = make([]wire.Wish, wire.MaxWishes+1)
	for i := range many.Wishes {
		many.Wishes[i] = wire.Wish{Reference: "x", Want: wire.WantConnections}
	}
	long := attach
	long.Wishes = []wire.Wish{{Reference: strings.Repeat("x", wire.MaxReference+1), Want: wire.WantConnections}}
	short := attach
	short.Token = token[:15]
	none := attach
	none.Wishes = nil
	backwards := attach
	backwards.MaxVersion = 0
	for name, packet := range map[string][]byte{
		"too many wishes": wire.AppendAttach(nil, many), "long reference": wire.AppendAttach(nil, long),
		"short token": wire.AppendAttach(nil, short), "no wishes": wire.AppendAttach(nil, none),
		"no version": wire.AppendAttach(nil, backwards), "no connections": frame(1),
		"254 connections": frame(1, make([]wire.Connection, 254)...),
	} {
		if _, err := decode(packet); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := decode(frame(1, make([]wire.Connection, wire.MaxFDs)...)); err != nil {
		t.Errorf("253 connections: %v", err)
	}
}

func TestFramesRoundTrip(t *testing.T) {
	check := func(sequence uint64, listener, flags, scope uint32, accepted int64, port uint16, peer, local [16]byte, v4 bool, extra []byte) bool {
		want := wire.Connection{
			Listener: listener, Flags: flags, Accepted: accepted,
			Peer: wire.Addr{Family: wire.FamilyIPv6, Port: port, Scope: scope, IP: peer}, TLVs: wire.AppendTLV(nil, port, extra),
		}
		if v4 {
			want.Local.Family = wire.FamilyIPv4
			copy(want.Local.IP[:4], local[:])
		}
		got, err := decode(frame(sequence, want, want))
		return err == nil && cmp.Equal([]wire.Connection{want, want}, got, cmpopts.EquateEmpty())
	}
	if err := quick.Check(check, nil); err != nil {
		t.Error(err)
	}
}

func TestFramesDoNotAllocate(t *testing.T) {
	buf := make([]byte, 0, 4096)
	var c wire.Connection
	allocs := testing.AllocsPerRun(100, func() {
		b := wire.BeginFrame(buf, 1)
		for i := range conns {
			b = wire.AppendConnection(b, &conns[i])
		}
		m, _ := wire.Parse(wire.EndFrame(b))
		f, err := wire.DecodeFrame(m)
		if err != nil {
			t.Fatal(err)
		}
		for f.Next(&c) {
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestPage(t *testing.T) {
	mem := make([]byte, wire.PageSize)
	p, err := wire.NewPage(mem)
	if err != nil {
		t.Fatal(err)
	}
	if p.Check() == nil {
		t.Error("an empty page passes")
	}
	p.Init()
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	p.Sent(10, 3)
	p.BeginTake()
	if _, _, ok := p.Taken(); ok {
		t.Error("known while it is taking")
	}
	p.EndTake(3, 4)
	p.AddDone(2)
	connections, messages := p.LoadSent()
	taken, received, ok := p.Taken()
	if connections != 10 || messages != 3 || taken != 3 || received != 4 || !ok || p.Done() != 2 {
		t.Error(connections, messages, taken, received, ok, p.Done())
	}
	// The places that the protocol gives them.
	for at, want := range map[int]uint64{64: 10, 72: 3, 128: 2, 136: 3, 144: 4, 192: 2} {
		if got := binary.NativeEndian.Uint64(mem[at:]); got != want {
			t.Errorf("offset %d: %d, want %d", at, got, want)
		}
	}
	if _, err := wire.NewPage(mem[:100]); err == nil {
		t.Error("a short page passes")
	}
}

// FuzzDecode feeds every decoder; what it accepts must survive being written and read again.
func FuzzDecode(f *testing.F) {
	for _, m := range messages {
		f.Add(m.packet)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		got, err := decode(packet)
		if err != nil {
			return
		}
		var again []byte
		switch m := got.(type) {
		case wire.Attach:
			again = wire.AppendAttach(nil, m)
		case wire.Attached:
			again = wire.AppendAttached(nil, m)
		case wire.Refused:
			again = wire.AppendRefused(nil, m)
		case wire.Drained:
			again = wire.AppendDrained(nil, m)
		case wire.ListenerGone:
			again = wire.AppendListenerGone(nil, m)
		case []wire.Connection:
			again = frame(1, m...)
		default:
			return
		}
		if len(again) > wire.MaxMessage {
			return
		}
		same, err := decode(again)
		if err != nil {
			t.Fatalf("%#v does not read back: %v", got, err)
		}
		if diff := cmp.Diff(got, same, cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
	})
}
