package main

import (
	"os"
	"strings"

	"github.com/portd/portd/internal/paths"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// again is the command line once more, with extra words, as a line for the shell.
func again(cmd *cobra.Command, args []string, extra ...string) string {
	line := []string{cmd.CommandPath()}
	for _, a := range args {
		line = append(line, quote(a))
	}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		switch {
		case f.Value.Type() == "bool" && f.Value.String() == "true":
			line = append(line, "--"+f.Name)
		case f.Value.Type() == "bool":
			line = append(line, "--"+f.Name+"=false")
		default:
			line = append(line, "--"+f.Name, quote(f.Value.String()))
		}
	})
	return strings.Join(append(line, extra...), " ")
}

// sudo is the command line once more as root, with what sudo takes from the environment and the command stands on.
func sudo(cmd *cobra.Command, args []string) string {
	var extra []string
	if socket := os.Getenv(paths.SocketEnv); socket != "" && socket != paths.System().Control() && !cmd.Flags().Changed("socket") {
		extra = append(extra, "--socket", quote(socket))
	}
	line := again(cmd, args, extra...)
	if ca := os.Getenv("SSL_CERT_FILE"); ca != "" && cmd.Flags().Changed("url") {
		line = "env SSL_CERT_FILE=" + quote(ca) + " " + line
	}
	return "sudo " + line
}

// shellWords is arguments as a shell reads them, also where the first looks like a flag.
func shellWords(words ...string) string {
	var out []string
	for i, w := range words {
		if i == 0 && strings.HasPrefix(w, "-") {
			out = append(out, "--")
		}
		out = append(out, quote(w))
	}
	return strings.Join(out, " ")
}

// quote makes one word for a shell of s.
func quote(s string) string {
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_./:,=@%+", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(printable(s), "'", `'\''`) + "'"
}
