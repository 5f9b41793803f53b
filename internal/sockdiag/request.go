package sockdiag

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

const (
	requestSize     = 56           // struct inet_diag_req_v2 (linux/inet_diag.h)
	oldRequestSize  = 60           // struct inet_diag_req
	tcpOfOld        = 18           // TCPDIAG_GETSOCK
	attrBytecode    = 1            // INET_DIAG_REQ_BYTECODE
	attrAskProtocol = 3            // INET_DIAG_REQ_PROTOCOL
	withInfo        = 1 << (2 - 1) // INET_DIAG_INFO, which brings INET_DIAG_ULP_INFO with it
)

// stateBits is the set of states to ask the kernel for; without any, there is nothing to ask of p.
func stateBits(p Protocol, states []State) uint32 {
	var bits uint32
	for _, s := range states {
		bits |= 1 << s
		if s == SynRecv {
			bits |= 1 << 12 // TCP_NEW_SYN_RECV: how requests wait in the table; they are reported as SynRecv
		}
	}
	if len(states) == 0 {
		bits = 1<<14 - 1
	}
	// Number 7, "closed", is how the kernel reports both Unconnected and BoundOnly.
	if p == TCP {
		return bits &^ (1 << Unconnected)
	}
	return bits & (1<<Established | 1<<Unconnected)
}

// request asks for the sockets in states whose local port is from first to last, 0 and 0 for all. Only TCP has extensions.
func request(family uint8, p Protocol, extensions uint8, states uint32, first, last uint16) []byte {
	b := make([]byte, requestSize, 88)
	b[0], b[1] = family, uint8(p)
	if p == TCP {
		b[2] = extensions
	}
	binary.NativeEndian.PutUint32(b[4:], states)
	for i := range b[48:] {
		b[48+i] = 0xff // INET_DIAG_NOCOOKIE
	}
	if first != 0 || last != 0 {
		b = attribute(b, attrBytecode, portsBetween(first, last))
	}
	return b
}

// oldRequest is request for both families, as it was before Linux 3.3: struct inet_diag_req, for TCP if nothing else is said.
func oldRequest(p Protocol, extensions uint8, states uint32, first, last uint16) []byte {
	b := make([]byte, oldRequestSize, 92)
	b[0] = unix.AF_INET // of whatever family is said there
	if p == TCP {
		b[3] = extensions
	}
	for i := range b[44:52] {
		b[44+i] = 0xff // INET_DIAG_NOCOOKIE
	}
	binary.NativeEndian.PutUint32(b[52:], states)
	if first != 0 || last != 0 {
		b = attribute(b, attrBytecode, portsBetween(first, last))
	}
	if p != TCP {
		b = attribute(b, attrAskProtocol, binary.NativeEndian.AppendUint32(nil, uint32(p)))
	}
	return b
}

func attribute(b []byte, kind uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return append(b, data...)
}

// portsBetween is a program for the kernel's socket filter: the local port is at least first and at most last. Each test is an operation
// {code, bytes to go on by if true, bytes if false} and an operand; whoever ends exactly at the end passes, beyond it fails.
func portsBetween(first, last uint16) []byte {
	const (
		greaterOrEqual = 2 // INET_DIAG_BC_S_GE
		lessOrEqual    = 3 // INET_DIAG_BC_S_LE
	)
	var b []byte
	op := func(code, yes uint8, no uint16) {
		b = append(b, code, yes)
		b = binary.NativeEndian.AppendUint16(b, no)
	}
	op(greaterOrEqual, 8, 20)
	op(0, 0, first)
	op(lessOrEqual, 8, 12)
	op(0, 0, last)
	return b
}
