//go:build linux && (amd64 || arm64)

package holder

import (
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
)

// The page or two that the holder keeps must have all of its code.
func TestText(t *testing.T) {
	f := runtime.FuncForPC(text())
	if f == nil || !strings.HasSuffix(f.Name(), ".spawn") {
		t.Fatalf("text is in %v", f)
	}
	size := uintptr(0)
	for g := f; g != nil && g.Entry() == f.Entry(); g = runtime.FuncForPC(text() + size) {
		size++
	}
	t.Logf("%d bytes", size)
	if size >= maxText {
		t.Errorf("its code takes %d bytes, more than the %d that are kept", size, maxText)
	}
}

// What is received as numbers is sent right behind the head of the control message.
func TestBlock(t *testing.T) {
	var b block
	if end := unsafe.Offsetof(b.rights) + unsafe.Sizeof(b.rights); end != unsafe.Offsetof(b.numbers) {
		t.Errorf("the head ends at %d, the numbers are at %d", end, unsafe.Offsetof(b.numbers))
	}
}

func TestGaps(t *testing.T) {
	const page = 0x1000
	maps := strings.Join([]string{
		"00400000-00500000 r-xp 00000000 fd:00 123  /usr/bin/portd",
		"00500000-00600000 rw-p 00000000 00:00 0",
		"c000000000-c004000000 rw-p 00000000 00:00 0 [anon: Go: heap]",
		"nonsense",
		"7f0000000000-7f0000004000 rw-p 00000000 00:00 0",
		"7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]",
		"7ffc00030000-7ffc00034000 r--p 00000000 00:00 0 [vvar]",
		"7ffc00034000-7ffc00036000 r-xp 00000000 00:00 0 [vdso]",
	}, "\n")
	keep := []gap{{0x4007f0, 0x1000}, {0x7f0000001000, 0x1000}}
	want := []gap{
		{0x400000, 0x500000 - 0x400000},
		{0x500000, 0x100000},
		{0xc000000000, 0x4000000},
		{0x7f0000000000, 0x1000},
		{0x7f0000002000, 0x2000},
		{0x7ffc00000000, 0x21000},
	}
	want = append([]gap{{0x402000, 0xfe000}}, want[1:]...) // the code is on the first two pages
	if diff := cmp.Diff(want, gaps([]byte(maps), page, keep), cmp.AllowUnexported(gap{})); diff != "" {
		t.Error(diff)
	}
}

// With more mappings than there is room for, those between which there is nothing to keep are one gap.
func TestManyGaps(t *testing.T) {
	const page = 0x1000
	var maps strings.Builder
	for i := range uintptr(2 * maxGaps) {
		from := 0x10000 + 2*page*i
		if i == 700 {
			maps.WriteString(hex(from) + "-" + hex(from+page) + " r-xp 0 00:00 0 [vdso]\n")
			continue
		}
		maps.WriteString(hex(from) + "-" + hex(from+page) + " rw-p 0 00:00 0\n")
	}
	at := func(i uintptr) uintptr { return 0x10000 + 2*page*i }
	keep := []gap{{at(100), page}}
	want := []gap{
		{at(0), at(99) + page - at(0)},
		{at(101), at(699) + page - at(101)},
		{at(701), at(2*maxGaps-1) + page - at(701)},
	}
	if diff := cmp.Diff(want, gaps([]byte(maps.String()), page, keep), cmp.AllowUnexported(gap{})); diff != "" {
		t.Error(diff)
	}
}

func hex(n uintptr) string {
	const digits = "0123456789abcdef"
	s := ""
	for ; n > 0; n /= 16 {
		s = string(digits[n%16]) + s
	}
	return s
}
