package main

import (
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A column is a heading and what stands under it. To show one more thing is to add one more column.
type column[T any] struct {
	head string
	cell func(T) string
	when shown
}

// shown says when a column is there. Whoever is in a hurry gets no column of nothing but zeros.
type shown uint8

const (
	always shown = iota
	ifAny        // where a row has something in it, or with -v
	ifWide       // with -v
)

// printColumns prints a row for each of rows. With -q it is what bare says of each, where that is not empty.
func printColumns[T any](c *ctl, rows []T, wide bool, columns []column[T], bare func(T) string) error {
	cells := make([][]string, len(rows))
	var head []string
	for _, col := range columns {
		texts, something := make([]string, len(rows)), false
		for i, row := range rows {
			texts[i] = col.cell(row)
			something = something || texts[i] != ""
		}
		if col.when == always || wide || col.when == ifAny && something {
			head = append(head, col.head)
			for i := range cells {
				cells[i] = append(cells[i], texts[i])
			}
		}
	}
	t := c.listing(len(rows), head...)
	for i, row := range rows {
		if !c.quiet {
			t.row(cells[i]...)
		} else if text := bare(row); text != "" {
			t.row(text)
		}
	}
	return t.flush()
}

// number is a count.
func number[N ~uint32 | ~uint64 | ~int32](n N) string { return fmt.Sprint(n) }

// some is a count that is empty where it is zero.
func some[N ~uint32 | ~uint64 | ~int32](n N) string {
	if n == 0 {
		return ""
	}
	return number(n)
}

// rate is "0/s", "0.3/s" or "1200/s".
func rate(perSecond float64) string {
	if perSecond > 0 && perSecond < 9.95 {
		return strconv.FormatFloat(perSecond, 'f', 1, 64) + "/s"
	}
	return fmt.Sprintf("%.0f/s", perSecond)
}

// bytesText is a number of bytes in four characters or so: "512", "1.5K", "20M".
func bytesText(n uint64) string {
	const units = "KMGTPE"
	if n < 1000 {
		return fmt.Sprint(n)
	}
	f, unit := float64(n), -1
	for f >= 999.5 {
		f /= 1000
		unit++
	}
	if f < 9.95 {
		return strconv.FormatFloat(f, 'f', 1, 64) + units[unit:unit+1]
	}
	return strconv.FormatFloat(f, 'f', 0, 64) + units[unit:unit+1]
}

// short is a duration with two or three digits: "85µs", "1.2ms", "340ms", "12s".
func short(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	t := d.AsDuration()
	for unit := time.Microsecond; unit <= time.Second; unit *= 1000 {
		switch {
		case t >= 1000*unit:
		case t < 10*unit:
			return t.Round(unit / 10).String()
		default:
			return t.Round(unit).String()
		}
	}
	return t.Round(time.Second).String()
}

// age is the time since t: "12s", "5m", "3h20m", "2d4h".
func age(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil {
		return ""
	}
	d := max(0, now.Sub(t.AsTime()))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}
