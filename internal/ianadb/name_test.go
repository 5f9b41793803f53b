package ianadb_test

import (
	"encoding/binary"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/portd/portd/internal/ianadb"
)

func TestCheckName(t *testing.T) {
	for name, want := range map[string]string{ // part of the error, or nothing
		"https": "", "a": "", "802-11-iapp": "", "0a": "", "EtherNet-IP-1": "", "abcdefghijklmno": "", "a-b-c-d-e-f-g-h": "",
		"":                 "at least one",
		"abcdefghijklmnop": "16 bytes",
		"123":              "no letter",
		"1-2":              "no letter",
		"-":                "no letter",
		"-web":             "begins or ends",
		"web-":             "begins or ends",
		"we--b":            "two hyphens",
		"dec_dlm":          `has '_'`,
		"cl/1":             `has '/'`,
		"914c/g":           `has '/'`,
		"whois++":          `has '+'`,
		"z39.50":           `has '.'`,
		"a b":              `has ' '`,
		"web\n":            `has '\n'`,
		"forté":            `has 'é'`,
		"\xff":             "only letters, digits and hyphens",
		"ééééééééé":        "18 bytes",
	} {
		err := ianadb.CheckName(name)
		switch {
		case want == "" && err != nil:
			t.Errorf("%q: %v", name, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "RFC 6335, section 5.1")):
			t.Errorf("%q: %v, want %q and the section", name, err, want)
		}
	}
}

// wellFormed is the grammar of RFC 6335 again, in another way: letters and digits, single hyphens between them, and a
// letter somewhere.
var (
	wellFormed = regexp.MustCompile(`\A[A-Za-z0-9]+(-[A-Za-z0-9]+)*\z`)
	hasLetter  = regexp.MustCompile(`[A-Za-z]`)
)

// TestRegisteredNames: 97 names of the registry break the rules, and only by their characters.
func TestRegisteredNames(t *testing.T) {
	seen, broken := map[string]bool{}, 0
	for _, r := range rows(t) {
		name := r[0]
		if name == "" || seen[name] {
			continue
		}
		seen[name] = true
		err := ianadb.CheckName(name)
		if err != nil {
			if broken++; !strings.Contains(err.Error(), "only letters") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if want := wellFormed.MatchString(name); (err == nil) != want {
			t.Errorf("%s: %v, want well-formed: %v", name, err, want)
		}
	}
	if broken != 97 {
		t.Errorf("%d names break the rules, want 97", broken)
	}
}

func FuzzCheckName(f *testing.F) {
	for _, s := range []string{"", "https", "-a", "a-", "a--b", "1", "a_b", "abcdefghijklmnop", "é", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		want := len(name) <= 15 && wellFormed.MatchString(name) && hasLetter.MatchString(name)
		if err := ianadb.CheckName(name); (err == nil) != want {
			t.Errorf("%q: %v, want well-formed: %v", name, err, want)
		}
	})
}

func TestParseServiceCode(t *testing.T) {
	for s, want := range map[string]uint32{
		"SC:DISC": 1145656131, "SC=1145656131": 1145656131, "SC=x44495343": 1145656131, "1145656131": 1145656131, // RFC 4340's own
		"sc:DISC": 1145656131, "sc=X44495343": 1145656131, "SC:disc": 1684632419, // case matters in the characters only
		"SC:fdpz": 1717858426, "SC=x6664707A": 1717858426, // IANA's example
		"SC:A": 0x41202020, "SC:A   ": 0x41202020, "SC:A B": 0x41204220, "SC:*./?": 0x2a2e2f3f,
		"0": 0, "SC=x0": 0, "7107696": 7107696, "SC=4294967295": 4294967295,
	} {
		if got, err := ianadb.ParseServiceCode(s); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", s, got, err, want)
		}
	}
	for s, want := range map[string]string{
		"": "none of", "SC": "none of", "SC=": "none of", "SC=x": "none of", "x44495343": "none of", "DISC": "none of", "-1": "none of",
		"+1": "none of", "1_000": "none of", " 1": "none of", "0x10": "none of", "SC=xfgh": "none of", "http": "none of", "SC=-1": "none of",
		"SC:": "one to four", "SC:    ": "one to four", "SC:DISCO": "one to four",
		"SC:DI:C": `has ':'`, "SC:DI\x00C": `has '\x00'`, "SC:é": "has 'Ã'",
		"4294967296": "more than 32 bits", "SC=x100000000": "more than 32 bits",
	} {
		if got, err := ianadb.ParseServiceCode(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %d, %v, want an error with %q", s, got, err, want)
		}
	}
}

// FuzzParseServiceCode: what is read can be written in each of the forms, and is read the same.
func FuzzParseServiceCode(f *testing.F) {
	for _, s := range []string{"SC:DISC", "SC:a b", "SC=1145656131", "SC=x44495343", "1145656131", "SC:", "SC=x", "4294967296"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		code, err := ianadb.ParseServiceCode(s)
		if err != nil {
			return
		}
		forms := []string{fmt.Sprint(code), fmt.Sprintf("SC=%d", code), fmt.Sprintf("SC=x%x", code), fmt.Sprintf("SC=x%08X", code)}
		if len(s) > 3 && s[2] == ':' {
			forms = append(forms, "SC:"+string(binary.BigEndian.AppendUint32(nil, code)))
		}
		for _, form := range forms {
			if again, err := ianadb.ParseServiceCode(form); err != nil || again != code {
				t.Errorf("%q is %d, but %q is %d, %v", s, code, form, again, err)
			}
		}
	})
}
