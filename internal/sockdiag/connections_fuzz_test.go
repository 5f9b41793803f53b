package sockdiag

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// MaxRanges is how many ranges of ports the kernel compares with.
const MaxRanges = maxRanges

func FuzzParseConnection(f *testing.F) {
	whole := make([]byte, messageSize, 400)
	whole[0] = unix.AF_INET
	info := make([]byte, 232)
	info[infoRTT], info[infoBytesAcked], info[infoBytesReceived] = 1, 2, 3
	f.Add(attribute(slices.Clone(whole), attrInfo, info))
	f.Add(attribute(slices.Clone(whole), attrInfo, info[:infoBytesReceived+7]))
	f.Add(attribute(slices.Clone(whole), attrInfo, info[:infoRTT+3]))
	f.Add(attribute(slices.Clone(whole), attrInfo, nil))
	f.Add(whole[:messageSize-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseConnection(b)
		if err != nil {
			return
		}
		if !c.Local.IsValid() || c.Local.Addr().Is4In6() || c.Remote.Addr().Is4In6() || c.RTT < 0 || c.RTT > (1<<32)*time.Microsecond {
			t.Errorf("%x is %+v", b, c)
		}
	})
}

// FuzzJoined takes pairs of ports for ranges.
func FuzzJoined(f *testing.F) {
	f.Add([]byte{0, 80, 0, 80, 0, 81, 0, 90, 1, 0, 2, 0})
	many := make([]byte, 0, 1200)
	for i := range uint16(300) {
		many = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(many, 7*i), 7*i+3)
	}
	f.Add(many)
	f.Add([]byte{255, 255, 255, 255, 0, 0, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		var ranges []PortRange
		for ; len(b) >= 4; b = b[4:] {
			r := PortRange{binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])}
			ranges = append(ranges, PortRange{min(r.First, r.Last), max(r.First, r.Last)})
		}
		out := joined(ranges)
		if len(out) > maxRanges {
			t.Fatalf("%d ranges", len(out))
		}
		for i := 1; i < len(out); i++ {
			if int(out[i].First) <= int(out[i-1].Last)+1 {
				t.Errorf("%v and %v are not apart", out[i-1], out[i])
			}
		}
		for _, r := range ranges {
			if !slices.ContainsFunc(out, func(o PortRange) bool { return o.First <= r.First && r.Last <= o.Last }) {
				t.Errorf("%v is not in %v", r, out)
			}
		}
	})
}
