package wire

import (
	"encoding/binary"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of an attach. A reference is as long as the longest endpoint text needs, and more.
const (
	MaxWishes    = 250
	MaxReference = 255
	MaxToken     = 32
	// MaxGeneration is what a generation's name may have.
	MaxGeneration = 63
)

// Want says what a worker wants of a listener.
type Want uint8

const (
	WantConnections Want = 1 // connections, accepted by portd
	WantSocket      Want = 2 // the listening socket, or the bound UDP socket, itself
)

// A Wish is one listener that a worker wants to serve.
type Wish struct {
	Reference string // a reservation's id or name, or an endpoint
	Want      Want
	Ready     bool   // takes connections from the start; else after READY
	Draining  bool   // takes none for now
	Weight    uint16 // its share beside others of its priority; 0: one share
	Priority  uint8  // 0 is the highest
	TLVs      TLVs   // those of other types
}

// Extensions of a wish.
const (
	tlvWeight   = 1 // u16
	tlvPriority = 2 // u8
)

const (
	wishReady    = 1 << 0
	wishDraining = 1 << 1
)

// An Attach is a worker's first message.
type Attach struct {
	MinVersion, MaxVersion uint16
	Room                   uint16 // messages that may wait in its queue; 0 leaves it to portd
	Token                  []byte // of an attachment to resume, or empty
	Wishes                 []Wish
	Generation             string // as the worker calls the release or start that it belongs to, at most MaxGeneration bytes
	TLVs                   TLVs   // those of other types
}

// tlvGeneration is an extension of ATTACH, a text without its length.
const tlvGeneration = 1

// AppendAttach appends the message to b.
func AppendAttach(b []byte, m Attach) []byte {
	start := len(b)
	b = begin(b, TypeAttach, 0)
	b = binary.LittleEndian.AppendUint16(b, m.MinVersion)
	b = binary.LittleEndian.AppendUint16(b, m.MaxVersion)
	b = binary.LittleEndian.AppendUint16(b, m.Room)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(m.Wishes)))
	b = append(b, uint8(len(m.Token)), 0, 0, 0)
	b = append(b, m.Token...)
	for _, w := range m.Wishes {
		var at int
		b, at = beginEntry(b)
		var flags uint8
		if w.Ready {
			flags |= wishReady
		}
		if w.Draining {
			flags |= wishDraining
		}
		b = append(b, uint8(w.Want), flags)
		b = appendText(b, w.Reference)
		if w.Weight != 0 {
			b = AppendTLV(b, tlvWeight, binary.LittleEndian.AppendUint16(nil, w.Weight))
		}
		if w.Priority != 0 {
			b = AppendTLV(b, tlvPriority, []byte{w.Priority})
		}
		b = append(b, w.TLVs...)
		b = endEntry(b, at)
	}
	if m.Generation != "" {
		b = AppendTLV(b, tlvGeneration, []byte(m.Generation))
	}
	b = append(b, m.TLVs...)
	return end(b, start)
}

// DecodeAttach reads the body of an ATTACH. Wants that it does not know are left for the caller to refuse.
func DecodeAttach(m Message) (Attach, error) {
	r := reader{b: m.Body}
	a := Attach{MinVersion: r.u16(), MaxVersion: r.u16(), Room: r.u16()}
	n := int(r.u16())
	token := int(r.u8())
	r.bytes(3)
	a.Token = r.bytes(token)
	switch {
	case r.short:
		return Attach{}, malformed("ATTACH ends early")
	case a.MinVersion == 0 || a.MaxVersion < a.MinVersion:
		return Attach{}, malformed("ATTACH has no version range")
	case token > MaxToken || token > 0 && token < 16:
		return Attach{}, malformed("a resume token has 16 to 32 bytes")
	case n == 0 || n > MaxWishes:
		return Attach{}, malformed("ATTACH has 1 to 250 wishes")
	}
	for range n {
		e := r.entry()
		w := Wish{Want: Want(e.u8())}
		flags := e.u8()
		w.Ready, w.Draining = flags&wishReady != 0, flags&wishDraining != 0
		w.Reference = e.text()
		all := e.tlvs()
		for kind, value := range all.All() {
			switch {
			case kind == tlvWeight && len(value) == 2:
				w.Weight = binary.LittleEndian.Uint16(value)
			case kind == tlvPriority && len(value) == 1:
				w.Priority = value[0]
			case kind == tlvWeight, kind == tlvPriority:
				return Attach{}, malformed("a weight has 2 bytes, a priority 1")
			default:
				w.TLVs = AppendTLV(w.TLVs, kind, value)
			}
		}
		if e.short || w.Reference == "" || len(w.Reference) > MaxReference {
			return Attach{}, malformed("a wish has a reference of 1 to 255 bytes, and ends where it says")
		}
		a.Wishes = append(a.Wishes, w)
	}
	all := r.tlvs()
	if r.short {
		return Attach{}, malformed("an extension ends early")
	}
	for kind, value := range all.All() {
		if kind != tlvGeneration {
			a.TLVs = AppendTLV(a.TLVs, kind, value)
			continue
		}
		a.Generation = string(value)
		if len(value) > MaxGeneration || !printable(a.Generation) {
			return Attach{}, malformed("a generation is printable text of at most 63 bytes")
		}
	}
	return a, nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// A Listener is one endpoint that a worker has got.
type Listener struct {
	Number      uint32 // what CONNECTIONS, READY, DRAIN call it
	Wish        uint16 // which wish it answers
	Index       uint16 // of the endpoint in its reservation
	Sockets     uint32 // how many of the sockets are its
	Reservation string
	Endpoint    string
	TLVs        TLVs
}

// An Attached is portd's answer. With it come the queue and the page, unless the worker keeps those that it has, and then sockets, as
// many as fit; the rest follow in SOCKETS messages.
type Attached struct {
	Version   uint16
	Kept      bool // the worker's old queue goes on
	More      bool // SOCKETS messages follow
	Room      uint16
	ID        string
	Token     []byte
	Listeners []Listener
	TLVs      TLVs
}

const (
	attachedKept = 1 << 0
	attachedMore = 1 << 1
	socketsMore  = 1 << 1
)

// AppendAttached appends the message to b.
func AppendAttached(b []byte, m Attached) []byte {
	start := len(b)
	var flags uint16
	if m.Kept {
		flags |= attachedKept
	}
	if m.More {
		flags |= attachedMore
	}
	b = begin(b, TypeAttached, flags)
	b = binary.LittleEndian.AppendUint16(b, m.Version)
	b = binary.LittleEndian.AppendUint16(b, m.Room)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(m.Listeners)))
	b = append(b, uint8(len(m.ID)), uint8(len(m.Token)))
	b = append(b, m.ID...)
	b = append(b, m.Token...)
	for _, l := range m.Listeners {
		var at int
		b, at = beginEntry(b)
		b = binary.LittleEndian.AppendUint32(b, l.Number)
		b = binary.LittleEndian.AppendUint16(b, l.Wish)
		b = binary.LittleEndian.AppendUint16(b, l.Index)
		b = binary.LittleEndian.AppendUint32(b, l.Sockets)
		b = appendText(b, l.Reservation)
		b = appendText(b, l.Endpoint)
		b = append(b, l.TLVs...)
		b = endEntry(b, at)
	}
	b = append(b, m.TLVs...)
	return end(b, start)
}

// DecodeAttached reads the body of an ATTACHED.
func DecodeAttached(m Message) (Attached, error) {
	r := reader{b: m.Body}
	a := Attached{
		Kept: m.Flags&attachedKept != 0, More: m.Flags&attachedMore != 0,
		Version: r.u16(), Room: r.u16(),
	}
	n, id, token := int(r.u16()), int(r.u8()), int(r.u8())
	a.ID, a.Token = string(r.bytes(id)), r.bytes(token)
	for range n {
		e := r.entry()
		l := Listener{Number: e.u32(), Wish: e.u16(), Index: e.u16(), Sockets: e.u32(), Reservation: e.text(), Endpoint: e.text()}
		l.TLVs = e.tlvs()
		if e.short {
			return Attached{}, malformed("a listener ends early")
		}
		a.Listeners = append(a.Listeners, l)
	}
	if a.TLVs = r.tlvs(); r.short {
		return Attached{}, malformed("ATTACHED ends early")
	}
	return a, nil
}

// AppendSockets appends a SOCKETS message, which carries descriptors and says whether another one follows.
func AppendSockets(b []byte, more bool) []byte {
	start := len(b)
	var flags uint16
	if more {
		flags = socketsMore
	}
	return end(begin(b, TypeSockets, flags), start)
}

// DecodeSockets reads a SOCKETS message.
func DecodeSockets(m Message) (more bool, err error) {
	r := reader{b: m.Body}
	if r.tlvs(); r.short {
		return false, malformed("an extension ends early")
	}
	return m.Flags&socketsMore != 0, nil
}
