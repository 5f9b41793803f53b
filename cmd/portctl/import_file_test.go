package main

import (
	"bytes"
	"compress/gzip"
	"io"
	"strings"
	"testing"

	"github.com/portd/portd/internal/ianadb"
)

func TestRegistryFile(t *testing.T) {
	t.Parallel()
	pack := func(text string) string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	most := strings.Repeat("x", ianadb.MaxFile)
	packed := pack("Service Name,Port Number")
	for _, tt := range []struct {
		name, in, want, err string
	}{
		{name: "empty"},
		{name: "one byte", in: "x", want: "x"},
		{name: "csv", in: "Service Name,Port Number", want: "Service Name,Port Number"},
		{name: "xml", in: "\xef\xbb\xbf\n<?xml", want: "\xef\xbb\xbf\n<?xml"},
		{name: "gzip", in: packed, want: "Service Name,Port Number"},
		{name: "gzip of xml", in: pack("<registry>"), want: "<registry>"},
		{name: "gzip cut off", in: packed[:len(packed)-9], err: "F is cut off in the middle of its gzip stream"},
		{name: "two gzip members", in: packed + packed, want: "Service Name,Port NumberService Name,Port Number"},
		{name: "the second cut off", in: packed + packed[:12], err: "F is cut off in the middle of its gzip stream"},
		{name: "gzip and a little more", in: packed + "x", err: "F: something else follows its gzip stream"},
		{name: "gzip and a lot more", in: packed + strings.Repeat("x", 100), err: "F: something else follows its gzip stream"},
		{name: "gzip of nothing", in: "\x1f\x8b", err: "F is cut off in the middle of its gzip stream"},
		{name: "gzip with a wrong sum", in: packed[:len(packed)-8] + "12345678", err: "F is no sound gzip file: gzip: invalid checksum"},
		{name: "as large as may be", in: most, want: most},
		{name: "larger", in: most + "x", err: "F has more than 16 MiB, which no registry has"},
		{name: "larger when unpacked", in: pack(most + "x"), err: "F has more than 16 MiB, which no registry has"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, err := newRegistryFile("F", strings.NewReader(tt.in))
			var got []byte
			if err == nil {
				got, err = io.ReadAll(r)
			}
			switch {
			case err == nil && tt.err != "", err != nil && err.Error() != tt.err:
				t.Errorf("got error %v, want %q", err, tt.err)
			case err == nil && string(got) != tt.want:
				t.Errorf("got %d bytes, want %d", len(got), len(tt.want))
			}
		})
	}
}
