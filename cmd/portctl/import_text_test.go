package main

import "testing"

func TestThousands(t *testing.T) {
	t.Parallel()
	for n, want := range map[uint32]string{0: "0", 999: "999", 1000: "1,000", 14533: "14,533", 4294967295: "4,294,967,295"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%d) is %s, want %s", n, got, want)
		}
	}
}

func TestCheckURL(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		ianaCSV:                       ianaCSV,
		"https://example.org/a?b#c":   "https://example.org/a?b",
		"http://example.org/a":        "",
		"https:///a":                  "",
		"https://:443/a":              "",
		"https://example.org/?\xff":   "",
		"https://example.org/?\u202e": "",
		"example.org":                 "",
		"https://me:it@example.org":   "",
		"https://exa mple.org":        "",
	} {
		got, err := checkURL(in)
		if got != want || (err == nil) != (want != "") || err != nil && exitCode(err) != exitUsage {
			t.Errorf("checkURL(%q) is %q, %v, want %q", in, got, err, want)
		}
	}
}
