package main

import (
	"testing"

	"github.com/portd/portd/internal/paths"
	"github.com/spf13/cobra"
)

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

// sudo takes away what a command had from the environment.
func TestSudo(t *testing.T) {
	for _, tt := range []struct {
		socket, ca string
		args       []string
		want       string
	}{
		{"", "", []string{"import", "a b.csv"}, "sudo portctl import 'a b.csv'"},
		{paths.System().Control(), "", []string{"import", "a"}, "sudo portctl import a"},
		{"/tmp/my own", "/ca.pem", []string{"import", "a"}, "sudo portctl import a --socket '/tmp/my own'"},
		{"/tmp/s", "", []string{"--socket", "/x", "import", "a"}, "sudo portctl import a --socket /x"},
		{"/tmp/s", "/ca.pem", []string{"import", "--url", "https://x/y"}, "sudo env SSL_CERT_FILE=/ca.pem portctl import --url https://x/y --socket /tmp/s"},
	} {
		t.Setenv(paths.SocketEnv, tt.socket)
		t.Setenv("SSL_CERT_FILE", tt.ca)
		root, got := (&ctl{}).root(), ""
		for _, cmd := range root.Commands() {
			if cmd.Name() == "import" {
				cmd.RunE = func(cmd *cobra.Command, args []string) error {
					got = sudo(cmd, args)
					return nil
				}
			}
		}
		root.SetArgs(tt.args)
		if err := root.Execute(); err != nil || got != tt.want {
			t.Errorf("%q is %q (%v), want %q", tt.args, got, err, tt.want)
		}
	}
}
