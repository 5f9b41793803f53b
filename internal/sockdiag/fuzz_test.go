package sockdiag

import (
	"encoding/binary"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

func FuzzParse(f *testing.F) {
	whole := make([]byte, messageSize, 100)
	whole[0] = unix.AF_INET6
	f.Add(whole)
	f.Add(whole[:messageSize-1])
	f.Add(attribute(whole, attrV6Only, []byte{1}))
	f.Add(append(attribute(whole, 21, make([]byte, 8)), 3, 0, 11, 0))
	f.Add(append(whole, 5, 0, 11, 0, 1))
	f.Add(attribute(whole, attrULP, attribute(nil, attrULPName, []byte("mptcp\x00"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, _, err := parse(b)
		if err == nil && !s.Local.IsValid() {
			t.Errorf("%+v has no address", s)
		}
		if err == nil && s.Local.Addr().Is4In6() {
			t.Errorf("%v is mapped", s.Local)
		}
	})
}

func FuzzParseUnix(f *testing.F) {
	f.Add(make([]byte, unixDiagMsgLen))
	f.Add(attribute(attribute(make([]byte, unixDiagMsgLen), unixDiagVFS, make([]byte, 8)), unixDiagUID, []byte{1, 0, 0, 0}))
	f.Add(attribute(make([]byte, unixDiagMsgLen), unixDiagVFS, make([]byte, 7)))
	f.Add(make([]byte, unixDiagMsgLen+5))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, ok, err := parseUnix(b); err != nil && ok || s.Minor >= 1<<20 || s.Major >= 1<<12 {
			t.Errorf("%+v, %t, %v", s, ok, err)
		}
	})
}

func FuzzMessages(f *testing.F) {
	header := func(size uint32, kind uint16, data ...byte) []byte {
		b := binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint32(nil, size), kind)
		return append(append(b, make([]byte, 10)...), data...)
	}
	f.Add(append(header(18, unix.SOCK_DIAG_BY_FAMILY, 1, 2, 0, 0), header(20, unix.NLMSG_DONE, 0, 0, 0, 0)...))
	f.Add(header(20, unix.NLMSG_ERROR, 254, 255, 255, 255))
	f.Add(header(15, unix.SOCK_DIAG_BY_FAMILY))
	f.Add(header(400, unix.NLMSG_NOOP))
	f.Fuzz(func(t *testing.T, b []byte) {
		carried := 0
		_, _ = messages(b, func(m []byte) error {
			carried += unix.NLMSG_HDRLEN + len(m)
			return nil
		})
		if carried > len(b) {
			t.Errorf("%d bytes of %d", carried, len(b))
		}
	})
}

func FuzzProcess(f *testing.F) {
	f.Add("portd", "Name:\tportd\nUid:\t1000\t1001\t1002\t1003\n")
	f.Add("a\x1b[2J\xff\n", "Name:\ta\\nUid:\t0\t0\t0\t0\nUid:\t1\t2\t3\t4\n")
	f.Add("\ufffd\u202e", "Uid:\t1\t4294967296\t3\t4\n")
	f.Fuzz(func(t *testing.T, comm, status string) {
		name := printable(comm)
		if !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q became %q", comm, name)
		}
		if uid, err := effectiveUID(status); err == nil && !strings.Contains(status, "Uid:") {
			t.Errorf("uid %d of %q", uid, status)
		}
	})
}

func TestEffectiveUID(t *testing.T) {
	for status, want := range map[string]uint32{
		"Name:\tx\nUid:\t1000\t0\t1002\t1003\n":                    0,
		"Name:\tx\nUid:\t1000\t4294967294\t1\t1\n":                 4294967294,
		"Name:\ta\\nUid:\t0\t0\t0\t0\nUid:\t1\t2\t3\t4\nGid:\t0\n": 2,
	} {
		if got, err := effectiveUID(status); err != nil || got != want {
			t.Errorf("effectiveUID(%q) = %d, %v; want %d", status, got, err, want)
		}
	}
	for _, status := range []string{"", "Name:\tx\n", "Uid:\n", "Uid:\t1\t-1\t1\t1\n", "Uid:\t1\t4294967296\t1\t1\n"} {
		if got, err := effectiveUID(status); err == nil {
			t.Errorf("effectiveUID(%q) = %d", status, got)
		}
	}
}
