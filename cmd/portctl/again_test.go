package main

import "testing"

func TestQuote(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"8123/tcp,udp": "8123/tcp,udp",
		"":             "''",
		"My own":       "'My own'",
		"it's $HOME":   `'it'\''s $HOME'`,
		"a\x1b[2Jb\n":  "'a?[2Jb?'",
		"a  b.csv":     "'a  b.csv'",
	} {
		if got := quote(in); got != want {
			t.Errorf("quote(%q) is %s, want %s", in, got, want)
		}
	}
}

func TestShellWords(t *testing.T) {
	for want, words := range map[string][]string{
		"https":       {"https"},
		"'sql*net' a": {"sql*net", "a"},
		"-- -l":       {"-l"},
		`'it'\''s'`:   {"it's"},
	} {
		if got := shellWords(words...); got != want {
			t.Errorf("shellWords(%q) = %s, want %s", words, got, want)
		}
	}
}
