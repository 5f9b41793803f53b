// Package wire is the bytes that portd and its workers exchange at the hand-off: docs/PROTOCOL.md in code.
//
// Everything is little-endian. Decoders take bytes from anybody: they never panic, never allocate for what a peer merely
// claims, and their results point into the bytes that they were given.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
)

// Version is the protocol version that this package speaks.
const Version = 1

const (
	HeaderSize = 8
	// MaxMessage is the longest message, padding included.
	MaxMessage = 64 << 10
	// MaxFDs is how many descriptors fit into one message (SCM_MAX_FD in the kernel), and so how many connections.
	MaxFDs = 253
)

// A Type says what a message is. A receiver skips types that it does not know.
type Type uint16

const (
	TypeAttach       Type = 1
	TypeAttached     Type = 2
	TypeSockets      Type = 3
	TypeRefused      Type = 4
	TypeReady        Type = 5
	TypeDrain        Type = 6
	TypeDrained      Type = 7
	TypeListenerGone Type = 8
	TypeGiveBack     Type = 9
	TypeConnections  Type = 16
	TypeProbe        Type = 17
)

// ErrMalformed is what every decoder returns for bytes that are not what the protocol says.
var ErrMalformed = errors.New("malformed message")

func malformed(what string) error { return fmt.Errorf("%w: %s", ErrMalformed, what) }

// A Message is one message taken out of its padding.
type Message struct {
	Type  Type
	Flags uint16
	Body  []byte
}

// Parse reads the header of the message that packet begins with. What follows its length is padding.
func Parse(packet []byte) (Message, error) {
	if len(packet) < HeaderSize {
		return Message{}, malformed("shorter than a header")
	}
	length := binary.LittleEndian.Uint32(packet[4:])
	if length < HeaderSize || length > MaxMessage || int(length) > len(packet) {
		return Message{}, malformed("its length is not that of the packet")
	}
	return Message{
		Type:  Type(binary.LittleEndian.Uint16(packet)),
		Flags: binary.LittleEndian.Uint16(packet[2:]),
		Body:  packet[HeaderSize:length],
	}, nil
}

// begin appends a header whose length end fills in.
func begin(b []byte, t Type, flags uint16) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(t))
	b = binary.LittleEndian.AppendUint16(b, flags)
	return binary.LittleEndian.AppendUint32(b, 0)
}

// end gives the message that starts at start its length.
func end(b []byte, start int) []byte {
	binary.LittleEndian.PutUint32(b[start+4:], uint32(len(b)-start))
	return b
}

// TLVs is an area of extensions, each a type, a length (both u16) and a value. Unknown types are ignored.
type TLVs []byte

// AppendTLV appends one extension. A value longer than 65,535 bytes does not fit and is cut.
func AppendTLV(t TLVs, kind uint16, value []byte) TLVs {
	value = value[:min(len(value), 1<<16-1)]
	t = binary.LittleEndian.AppendUint16(t, kind)
	t = binary.LittleEndian.AppendUint16(t, uint16(len(value)))
	return append(t, value...)
}

// All yields the extensions. An area that a decoder returned is whole.
func (t TLVs) All() iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		r := reader{b: t}
		for len(r.b) > 0 {
			kind, value := r.u16(), r.bytes(int(r.u16()))
			if r.short || !yield(kind, value) {
				return
			}
		}
	}
}

// reader takes values off the front of b. Past its end it returns zeros and remembers that.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) bytes(n int) []byte {
	if n > len(r.b) {
		r.b, r.short = nil, true
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) u8() uint8 {
	if v := r.bytes(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if v := r.bytes(2); v != nil {
		return binary.LittleEndian.Uint16(v)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if v := r.bytes(4); v != nil {
		return binary.LittleEndian.Uint32(v)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if v := r.bytes(8); v != nil {
		return binary.LittleEndian.Uint64(v)
	}
	return 0
}

func (r *reader) text() string { return string(r.bytes(int(r.u16()))) }

// entry takes a part whose first u16 is its own length, that included.
func (r *reader) entry() reader {
	n := int(r.u16())
	if r.short || n < 2 {
		r.b, r.short = nil, true
		return reader{short: true}
	}
	e := r.bytes(n - 2)
	return reader{b: e, short: r.short}
}

// tlvs takes the rest as extensions.
func (r *reader) tlvs() TLVs {
	if len(r.b) == 0 {
		return nil
	}
	area := r.b
	for len(r.b) > 0 {
		r.u16()
		r.bytes(int(r.u16()))
	}
	if r.short {
		return nil
	}
	return TLVs(area)
}

func appendText(b []byte, s string) []byte {
	s = s[:min(len(s), 1<<16-1)]
	b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

// beginEntry and endEntry put an entry's own length in front of it.
func beginEntry(b []byte) ([]byte, int) { return append(b, 0, 0), len(b) }

func endEntry(b []byte, start int) []byte {
	binary.LittleEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b
}
