package localports

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPortSet(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ""},
		{"0", "0"},
		{"65535", "65535"},
		{"0-65535", "0-65535"},
		{"22,80", "22,80"},
		{"80,22,81", "22,80-81"},
		{"63-64,127,128", "63-64,127-128"},
		{"7-7", "7"},
	} {
		s, err := parsePorts(tt.text)
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
			continue
		}
		if got := s.String(); got != tt.want {
			t.Errorf("%q is %q, want %q", tt.text, got, tt.want)
		}
	}
	for _, text := range []string{",", "22,", "-", "80-", "-80", "80-79", "65536", "1-65536", "+1", "0x10", " 1", "1\n", "1-2-3"} {
		if s, err := parsePorts(text); err == nil {
			t.Errorf("%q is taken for %v", text, s)
		}
	}
}

// The kernel takes each text whole, and together they are the set.
func TestWrites(t *testing.T) {
	for _, density := range []int{1, 2, 3, 50, 5000} {
		s := new(portSet)
		for p := range 1 << 16 {
			if rand.IntN(density) == 0 {
				s.add(p)
			}
		}
		got := new(portSet)
		for _, text := range writes(s) {
			if len(text) > maxWrite {
				t.Errorf("density 1/%d: a text of %d bytes", density, len(text))
			}
			part, err := parsePorts(strings.TrimSuffix(string(text), "\n"))
			if err != nil {
				t.Fatal(err)
			}
			got = got.with(part)
		}
		if *got != *s {
			t.Errorf("density 1/%d: the texts are %d ports, the set %d", density, got.count(), s.count())
		}
	}
}

func FuzzPorts(f *testing.F) {
	for _, seed := range []string{"", "22", "22,8000-8009", "0-65535", "1,1,1", "80-79", "65536", ",", "-"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parsePorts(text)
		if err != nil {
			return
		}
		again, err := parsePorts(s.String())
		if err != nil || *again != *s {
			t.Errorf("%q prints as %q, which is %v, %v", text, s, again, err)
		}
	})
}

func FuzzRecord(f *testing.F) {
	sure, _ := parsePorts("22,8000-8009")
	f.Add((&record{}).String())
	f.Add((&record{boot: "b", netns: "1", sure: *sure, maybe: *sure}).String())
	f.Add(recordMagic)
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseRecord(text)
		if err != nil {
			return
		}
		again, err := parseRecord(r.String())
		if err != nil || *again != *r {
			t.Errorf("%q prints as %q: %v", text, r, err)
		}
	})
}

func TestRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	want := &record{boot: "b", netns: "7"}
	want.sure.add(80)
	want.maybe.addRange(1000, 1009)
	if err := want.save(path); err != nil {
		t.Fatal(err)
	}
	got, err := load(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.String(), got.String()); diff != "" {
		t.Error(diff)
	}
	// Without entries there is no file, and without a file no entries.
	for range 2 {
		if err := (&record{boot: "b"}).save(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("an empty record: %v", err)
	}
	if got, err := load(path); err != nil || *got != (record{}) {
		t.Errorf("without a file it is %v, %v", got, err)
	}
	for _, text := range []string{"", "\n", want.String()[:40], want.String() + "more\n", strings.Replace(want.String(), "sure 80", "sure 80-", 1)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := load(path); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}
