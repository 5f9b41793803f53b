package ianadb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const maxName = 15

// CheckName says which rule for service names (RFC 6335, section 5.1) a name breaks, if any. IANA keeps names that break
// one as aliases, so this is a question to new names only.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("a service name has at least one character (RFC 6335, section 5.1)")
	case len(name) > maxName:
		return fmt.Errorf("service name %.40q has %d bytes, %d characters are the most (RFC 6335, section 5.1)", name, len(name), maxName)
	}
	letter := false
	for _, c := range name {
		switch {
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z':
			letter = true
		case '0' <= c && c <= '9' || c == '-':
		default:
			return fmt.Errorf("service name %q has %q, only letters, digits and hyphens may be in one (RFC 6335, section 5.1)", name, c)
		}
	}
	switch {
	case !letter:
		return fmt.Errorf("service name %q has no letter (RFC 6335, section 5.1)", name)
	case strings.HasPrefix(name, "-") || strings.HasSuffix(name, "-"):
		return fmt.Errorf("service name %q begins or ends with a hyphen (RFC 6335, section 5.1)", name)
	case strings.Contains(name, "--"):
		return fmt.Errorf("service name %q has two hyphens in a row (RFC 6335, section 5.1)", name)
	}
	return nil
}

// ParseServiceCode reads a DCCP service code as RFC 4340, section 8.1.2, writes it, by its characters, in decimal or in
// hexadecimal: SC:DISC, SC=1145656131, SC=x44495343; and as the registry does, the bare number. Characters are letters,
// digits, blanks and any of -_+.*/?@; blanks fill up what has fewer than four. The case of SC and x does not matter.
func ParseServiceCode(s string) (uint32, error) {
	if text, ok := cutPrefix(s, "SC:"); ok {
		return packServiceCode(s, text)
	}
	digits, base := s, 10
	if number, ok := cutPrefix(s, "SC="); ok {
		digits = number
		if hex, ok := cutPrefix(number, "x"); ok {
			digits, base = hex, 16
		}
	}
	n, err := strconv.ParseUint(digits, base, 32)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, fmt.Errorf("service code %.40q is more than 32 bits hold (RFC 4340, section 8.1.2)", s)
	case err != nil:
		return 0, fmt.Errorf("service code %.40q is none of SC:DISC, SC=1145656131, SC=x44495343 and 1145656131 (RFC 4340, section 8.1.2)", s)
	}
	return uint32(n), nil
}

func cutPrefix(s, prefix string) (rest string, ok bool) {
	if !hasPrefix(s, prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

func packServiceCode(s, text string) (code uint32, err error) {
	text = strings.TrimRight(text, " ")
	if text == "" || len(text) > 4 {
		return 0, fmt.Errorf("service code %.40q has not one to four characters after SC: (RFC 4340, section 8.1.2)", s)
	}
	for _, c := range []byte(text) {
		if !isAlnum(c) && strings.IndexByte("-_+.*/?@ ", c) < 0 {
			return 0, fmt.Errorf("service code %.40q has %q, only letters, digits and -_+.*/?@ may be in one (RFC 4340, section 8.1.2)", s, c)
		}
	}
	return binary.BigEndian.Uint32([]byte((text + "   ")[:4])), nil
}

func isAlnum(c byte) bool { return '0' <= c && c <= '9' || 'a' <= lower(c) && lower(c) <= 'z' }
