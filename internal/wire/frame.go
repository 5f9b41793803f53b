package wire

import (
	"encoding/binary"
	"net/netip"
)

// A Family says what kind of address follows.
type Family uint8

const (
	FamilyNone Family = 0 // absent
	FamilyIPv4 Family = 1
	FamilyIPv6 Family = 2
	FamilyUnix Family = 3
)

// MaxPath is the longest path of a unix socket address (sun_path in unix(7)).
const MaxPath = 108

// An Addr is one end of a connection. The zero Addr is an absent one.
type Addr struct {
	Family Family
	Port   uint16
	Scope  uint32   // IPv6: index of the interface that a link-local address belongs to
	IP     [16]byte // IPv4: the first four bytes
	Path   []byte   // unix
}

// AddrPort is the address without its scope. It is not valid for unix and absent addresses.
func (a Addr) AddrPort() netip.AddrPort {
	switch a.Family {
	case FamilyIPv4:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(a.IP[:4])), a.Port)
	case FamilyIPv6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.IP), a.Port)
	}
	return netip.AddrPort{}
}

// AddrOf is ap on the wire; an IPv4-mapped address becomes IPv4, a zone is left out.
func AddrOf(ap netip.AddrPort) Addr {
	ip := ap.Addr().Unmap()
	a := Addr{Port: ap.Port()}
	switch {
	case ip.Is4():
		v4 := ip.As4()
		a.Family = FamilyIPv4
		copy(a.IP[:], v4[:])
	case ip.Is6():
		a.Family, a.IP = FamilyIPv6, ip.As16()
	default:
		a.Port = 0
	}
	return a
}

// Redelivered marks a connection that had been sent to a worker that did not take it.
const Redelivered = 1 << 0

// A Connection is one accepted connection of a frame; its descriptor stands at the same place among the message's.
type Connection struct {
	Listener uint32
	Accepted int64 // nanoseconds since the epoch, CLOCK_REALTIME
	Flags    uint32
	Peer     Addr
	Local    Addr // may be absent: getsockname tells
	TLVs     TLVs
}

const (
	frameSequence = HeaderSize
	frameCount    = HeaderSize + 8
	frameHeader   = HeaderSize + 12
)

// BeginFrame appends the head of a CONNECTIONS message to b, which must be empty: the frame's place is its beginning.
func BeginFrame(b []byte, sequence uint64) []byte {
	b = begin(b, TypeConnections, 0)
	b = binary.LittleEndian.AppendUint64(b, sequence)
	return append(b, 0, 0, 0, 0)
}

// AppendConnection adds a connection to the frame b. A frame has at most MaxFDs.
func AppendConnection(b []byte, c *Connection) []byte {
	b, at := beginEntry(b)
	b = binary.LittleEndian.AppendUint32(b, c.Listener)
	b = binary.LittleEndian.AppendUint64(b, uint64(c.Accepted))
	b = binary.LittleEndian.AppendUint32(b, c.Flags)
	b = appendAddr(b, &c.Peer)
	b = appendAddr(b, &c.Local)
	b = append(b, c.TLVs...)
	b[frameCount]++
	return endEntry(b, at)
}

// EndFrame completes the frame b.
func EndFrame(b []byte) []byte { return end(b, 0) }

func appendAddr(b []byte, a *Addr) []byte {
	switch a.Family {
	case FamilyIPv4:
		b = append(b, uint8(FamilyIPv4), 6)
		b = binary.LittleEndian.AppendUint16(b, a.Port)
		return append(b, a.IP[:4]...)
	case FamilyIPv6:
		b = append(b, uint8(FamilyIPv6), 22)
		b = binary.LittleEndian.AppendUint16(b, a.Port)
		b = binary.LittleEndian.AppendUint32(b, a.Scope)
		return append(b, a.IP[:]...)
	case FamilyUnix:
		path := a.Path[:min(len(a.Path), MaxPath)]
		b = append(b, uint8(FamilyUnix), uint8(len(path)))
		return append(b, path...)
	}
	return append(b, uint8(FamilyNone), 0)
}

// addr takes an address; one of a family that is not known is an absent one.
func (r *reader) addr(a *Addr) {
	*a = Addr{}
	family := Family(r.u8())
	e := reader{b: r.bytes(int(r.u8()))}
	switch family {
	case FamilyIPv4:
		a.Family, a.Port = family, e.u16()
		copy(a.IP[:4], e.bytes(4))
	case FamilyIPv6:
		a.Family, a.Port, a.Scope = family, e.u16(), e.u32()
		copy(a.IP[:], e.bytes(16))
	case FamilyUnix:
		a.Family, a.Path = family, e.b
		e.short = len(a.Path) > MaxPath
	}
	r.short = r.short || e.short
}

// A Frame is a CONNECTIONS message being read.
type Frame struct {
	Sequence uint64 // of the message in its queue, from 1 on
	Count    int    // connections, 1 to 253
	rest     reader
	left     int
}

// DecodeFrame checks a whole CONNECTIONS message, so that Next then cannot fail.
func DecodeFrame(m Message) (Frame, error) {
	r := reader{b: m.Body}
	f := Frame{Sequence: r.u64(), Count: int(r.u8())}
	r.bytes(3)
	if r.short || f.Count == 0 || f.Count > MaxFDs {
		return Frame{}, malformed("a frame has 1 to 253 connections")
	}
	f.rest, f.left = r, f.Count
	var c Connection
	for range f.Count {
		if !r.connection(&c) {
			return Frame{}, malformed("a connection ends early")
		}
	}
	if r.tlvs(); r.short {
		return Frame{}, malformed("an extension ends early")
	}
	return f, nil
}

// Next reads the next connection into c, until there is none.
func (f *Frame) Next(c *Connection) bool {
	if f.left == 0 {
		return false
	}
	f.left--
	return f.rest.connection(c)
}

func (r *reader) connection(c *Connection) bool {
	e := r.entry()
	c.Listener, c.Accepted, c.Flags = e.u32(), int64(e.u64()), e.u32()
	e.addr(&c.Peer)
	e.addr(&c.Local)
	c.TLVs = e.tlvs()
	return !e.short
}
