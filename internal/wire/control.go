package wire

import (
	"encoding/binary"
	"fmt"
)

// A Code says why an attach was refused. The numbers are gRPC's, so that both doors say the same.
type Code uint16

const (
	CodeInvalid            Code = 3
	CodeNotFound           Code = 5
	CodeDenied             Code = 7
	CodeExhausted          Code = 8
	CodeFailedPrecondition Code = 9
	CodeVersion            Code = 12 // UNIMPLEMENTED: no version in common
	CodeInternal           Code = 13
	CodeUnavailable        Code = 14
)

func (c Code) String() string {
	switch c {
	case CodeInvalid:
		return "invalid"
	case CodeNotFound:
		return "not found"
	case CodeDenied:
		return "denied"
	case CodeExhausted:
		return "exhausted"
	case CodeFailedPrecondition:
		return "failed precondition"
	case CodeVersion:
		return "version"
	case CodeInternal:
		return "internal"
	case CodeUnavailable:
		return "unavailable"
	}
	return fmt.Sprintf("code %d", uint16(c))
}

// Refused is portd's answer to an attach that it does not grant; the connection ends after it.
type Refused struct {
	Code Code
	Text string // a sentence for people, with what to do next
	TLVs TLVs
}

// AppendRefused appends the message to b.
func AppendRefused(b []byte, m Refused) []byte {
	start := len(b)
	b = begin(b, TypeRefused, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Code))
	b = append(b, 0, 0)
	b = appendText(b, m.Text)
	b = append(b, m.TLVs...)
	return end(b, start)
}

// DecodeRefused reads the body of a REFUSED.
func DecodeRefused(m Message) (Refused, error) {
	r := reader{b: m.Body}
	d := Refused{Code: Code(r.u16())}
	r.bytes(2)
	d.Text = r.text()
	if d.TLVs = r.tlvs(); r.short {
		return Refused{}, malformed("REFUSED ends early")
	}
	return d, nil
}

// AllListeners in READY and DRAIN stands for every listener of the attachment.
const AllListeners = ^uint32(0)

// AppendReady appends a READY, by which a worker says that it takes connections.
func AppendReady(b []byte, listener uint32) []byte { return appendNumber(b, TypeReady, listener) }

// AppendDrain appends a DRAIN, by which a worker says that it takes no more.
func AppendDrain(b []byte, listener uint32) []byte { return appendNumber(b, TypeDrain, listener) }

func appendNumber(b []byte, t Type, listener uint32) []byte {
	start := len(b)
	b = begin(b, t, 0)
	b = binary.LittleEndian.AppendUint32(b, listener)
	return end(b, start)
}

// DecodeNumber reads the body of a READY or a DRAIN.
func DecodeNumber(m Message) (listener uint32, err error) {
	r := reader{b: m.Body}
	listener = r.u32()
	if r.tlvs(); r.short {
		return 0, malformed("it ends before the listener's number")
	}
	return listener, nil
}

// AppendGiveBack appends a GIVE_BACK, by which a worker says that it cannot take what lies in its queue.
func AppendGiveBack(b []byte) []byte { return end(begin(b, TypeGiveBack, 0), len(b)) }

// AppendProbe appends a PROBE, which a worker takes out of its queue and skips: so portd sees that it takes again.
func AppendProbe(b []byte) []byte { return end(begin(b, TypeProbe, 0), len(b)) }

// Drained answers a DRAIN once nothing of the listener waits in the worker's queue.
type Drained struct {
	Listener uint32
	Sent     uint64 // connections of this listener that the worker got in all, less those that were taken back
	TLVs     TLVs
}

// AppendDrained appends the message to b.
func AppendDrained(b []byte, m Drained) []byte {
	start := len(b)
	b = begin(b, TypeDrained, 0)
	b = binary.LittleEndian.AppendUint32(b, m.Listener)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, m.Sent)
	b = append(b, m.TLVs...)
	return end(b, start)
}

// DecodeDrained reads the body of a DRAINED.
func DecodeDrained(m Message) (Drained, error) {
	r := reader{b: m.Body}
	d := Drained{Listener: r.u32()}
	r.u32()
	d.Sent = r.u64()
	if d.TLVs = r.tlvs(); r.short {
		return Drained{}, malformed("DRAINED ends early")
	}
	return d, nil
}

// ListenerGone says that a listener of the attachment has ended for good.
type ListenerGone struct {
	Listener uint32
	Reason   string // "released", "expired", for people
	TLVs     TLVs
}

// AppendListenerGone appends the message to b.
func AppendListenerGone(b []byte, m ListenerGone) []byte {
	start := len(b)
	b = begin(b, TypeListenerGone, 0)
	b = binary.LittleEndian.AppendUint32(b, m.Listener)
	b = appendText(b, m.Reason)
	b = append(b, m.TLVs...)
	return end(b, start)
}

// DecodeListenerGone reads the body of a LISTENER_GONE.
func DecodeListenerGone(m Message) (ListenerGone, error) {
	r := reader{b: m.Body}
	g := ListenerGone{Listener: r.u32(), Reason: r.text()}
	if g.TLVs = r.tlvs(); r.short {
		return ListenerGone{}, malformed("LISTENER_GONE ends early")
	}
	return g, nil
}
