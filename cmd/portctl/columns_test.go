package main

import (
	"bufio"
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pb "github.com/portd/portd/proto/portd/v1"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestFigures(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for _, tt := range []struct{ got, want string }{
		{rate(0), "0/s"},
		{rate(0.31), "0.3/s"},
		{rate(9.96), "10/s"},
		{rate(12345.6), "12346/s"},
		{bytesText(0), "0"},
		{bytesText(999), "999"},
		{bytesText(1000), "1.0K"},
		{bytesText(9_950), "10K"},
		{bytesText(999_499), "999K"},
		{bytesText(999_500), "1.0M"},
		{bytesText(1<<64 - 1), "18E"},
		{short(nil), ""},
		{short(durationpb.New(0)), "0s"},
		{short(durationpb.New(85 * time.Microsecond)), "85µs"},
		{short(durationpb.New(1234 * time.Microsecond)), "1.2ms"},
		{short(durationpb.New(340_400 * time.Microsecond)), "340ms"},
		{short(durationpb.New(12_345 * time.Millisecond)), "12s"},
		{age(nil, now), ""},
		{age(timestamppb.New(now.Add(time.Second)), now), "0s"}, // portd's clock and ours are one, and it can be set
		{age(timestamppb.New(now.Add(-59*time.Second)), now), "59s"},
		{age(timestamppb.New(now.Add(-61*time.Minute)), now), "1h1m"},
		{age(timestamppb.New(now.Add(-52*time.Hour)), now), "2d4h"},
		{some(uint64(0)), ""},
		{some(uint32(7)), "7"},
	} {
		if tt.got != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
}

func TestQuantile(t *testing.T) {
	histogram := func(counts ...uint64) *pb.LatencyHistogram {
		h := &pb.LatencyHistogram{}
		for i, n := range counts {
			b := &pb.LatencyBucket{Count: n}
			if i < 2 {
				b.AtMost = durationpb.New(time.Duration(1+i) * time.Millisecond)
			}
			h.Buckets, h.Samples = append(h.Buckets, b), h.Samples+n
		}
		return h
	}
	for _, tt := range []struct {
		h    *pb.LatencyHistogram
		want string
	}{
		{nil, " "},
		{histogram(0, 0, 0), " "},
		{histogram(99, 1, 0), "≤1ms ≤1ms"},
		{histogram(98, 2, 0), "≤1ms ≤2ms"},
		{histogram(50, 0, 50), "≤1ms >2ms"},
		{histogram(49, 0, 51), ">2ms >2ms"},
	} {
		if got := quantile(tt.h, 0.5) + " " + quantile(tt.h, 0.99); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.h, got, tt.want)
		}
	}
}

// A column that nothing stands in is not there, unless everything is wanted.
func TestColumns(t *testing.T) {
	columns := []column[int]{
		{head: "N", cell: func(n int) string { return fmt.Sprint(n) }},
		{head: "BIG", when: ifAny, cell: func(n int) string {
			if n < 10 {
				return ""
			}
			return "big"
		}},
		{head: "HEX", when: ifWide, cell: func(n int) string { return fmt.Sprintf("%x", n) }},
		{head: "", cell: func(int) string { return "" }},
	}
	for _, tt := range []struct {
		rows  []int
		quiet bool
		wide  bool
		want  string
	}{
		{rows: []int{1, 2}, want: "N\n1\n2\n"},
		{rows: []int{1, 20}, want: "N   BIG\n1   -\n20  big\n"},
		{rows: []int{1, 20}, wide: true, want: "N   BIG  HEX\n1   -    1\n20  big  14\n"},
		{rows: []int{1}, wide: true, want: "N  BIG  HEX\n1  -    1\n"},
		{rows: []int{1, 20}, quiet: true, want: "20\n"},
	} {
		var out bytes.Buffer
		c := &ctl{out: bufio.NewWriter(&out), quiet: tt.quiet}
		err := printColumns(c, tt.rows, tt.wide, columns, func(n int) string {
			if n == 1 {
				return ""
			}
			return fmt.Sprint(n)
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.out.Flush(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, out.String()); diff != "" {
			t.Errorf("%+v: %s", tt, diff)
		}
	}
}
