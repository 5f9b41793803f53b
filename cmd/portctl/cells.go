package main

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
)

// cell is the lines of a cell, the white space in each collapsed. Those of a paragraph are one.
func cell(s string) (lines []string) {
	for l := range strings.Lines(s) {
		l = ianadb.Collapse(l)
		switch n := len(lines) - 1; {
		case l == "":
		case n >= 0 && goesOn(lines[n], l):
			lines[n] += " " + l
		default:
			lines = append(lines, l)
		}
	}
	return lines
}

// goesOn says that the registry broke a sentence after line for its width alone. In lists of keys and items, each stands on a
// line of its own.
func goesOn(line, next string) bool {
	last, _ := utf8.DecodeLastRuneInString(line)
	first, _, _ := strings.Cut(next, " ")
	return len(line) >= 60 && (unicode.IsLetter(last) || last == ',' || last == '"') && !strings.ContainsAny(first, "=:*")
}

// brackets is a cell of people or documents, "[A][B]", on one line without its brackets.
func brackets(s string) []string {
	s = ianadb.Collapse(s)
	if s == "" {
		return nil
	}
	inner, ok := strings.CutPrefix(s, "[")
	inner, ok2 := strings.CutSuffix(inner, "]")
	items := strings.Split(inner, "][")
	if !ok || !ok2 || slices.ContainsFunc(items, func(item string) bool { return strings.ContainsAny(item, "[]") }) {
		return []string{s}
	}
	return []string{strings.Join(items, "; ")}
}

// serviceCode is a code of DCCP in the ways of RFC 4340 section 8.1.2.
func serviceCode(s string) []string {
	code, err := ianadb.ParseServiceCode(s)
	if err != nil {
		return cell(s)
	}
	if text := services.CodeText(code); strings.HasPrefix(text, "SC:") {
		return []string{s + " (" + text + ")"}
	}
	return []string{s}
}

func addedHere(e *pb.ServiceEntry) []string {
	if e.GetChangeTime() == nil {
		return nil
	}
	return []string{full(e.GetChangeTime()) + " by " + ownerName(e.GetChangedBy())}
}

// wrap breaks a line at blanks, so that no part of it is wider than width where that is possible.
func wrap(s string, width int) (parts []string) {
	for utf8.RuneCountInString(s) > width {
		at := -1
		n := 0
		for i, r := range s {
			if r == ' ' && (n <= width || at < 0) && i > 0 {
				at = i
			}
			if n++; n > width && at >= 0 {
				break
			}
		}
		if at < 0 {
			break
		}
		parts = append(parts, s[:at])
		s = strings.TrimLeft(s[at:], " ")
	}
	return append(parts, s)
}
