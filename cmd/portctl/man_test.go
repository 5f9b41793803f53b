package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The manual pages are made from the commands by a test, so that what makes them is not linked into portctl.
//
//go:generate go test . -run ^TestManPages$ -update

var update = flag.Bool("update", false, "write the manual pages")

const manDir = "../../docs/man"

func TestManPages(t *testing.T) {
	root := (&ctl{}).root()
	root.InitDefaultCompletionCmd("completion")
	pages := map[string][]byte{}
	addPages(pages, root)
	for name, want := range pages {
		path := filepath.Join(manDir, name)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what the command says (%v): go generate ./cmd/portctl", path, err)
		}
	}
	there, err := filepath.Glob(filepath.Join(manDir, "portctl*.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range there {
		if pages[filepath.Base(path)] == nil {
			t.Errorf("%s is of no command any more: remove it", path)
		}
	}
}

// addPages makes the pages of a command and of those below it. Completion's are about shells, each in its own help.
func addPages(pages map[string][]byte, cmd *cobra.Command) {
	pages[strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".1"] = manPage(cmd)
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && cmd.Name() != "completion" {
			addPages(pages, sub)
		}
	}
}

// portd's page is written by hand; its options at least are those of the program.
func TestPortdPage(t *testing.T) {
	source, err := os.ReadFile("../portd/main.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(manDir, "portd.8"))
	if err != nil {
		t.Fatal(err)
	}
	_, usage, ok := strings.Cut(string(source), "const usage = `")
	if !ok {
		t.Fatal("portd has no usage text")
	}
	usage, _, _ = strings.Cut(usage, "`")
	option := regexp.MustCompile(`--[a-z][a-z-]*`)
	set := func(text string) []string {
		all := option.FindAllString(text, -1)
		slices.Sort(all)
		return slices.Compact(all)
	}
	if got, want := set(strings.ReplaceAll(string(page), `\-`, "-")), set(usage); !slices.Equal(got, want) {
		t.Errorf("portd.8 has %v, portd --help has %v", got, want)
	}
}

// manPage is the help of a command in man(7)'s language.
func manPage(cmd *cobra.Command) []byte {
	var b bytes.Buffer
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
	fmt.Fprintf(&b, ".\\\" Made from the command's own help: go generate ./cmd/portctl\n")
	fmt.Fprintf(&b, ".TH %s 1 \"\" portd \"portd manual\"\n", strings.ToUpper(roff(name)))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(name), roff(lowerFirst(cmd.Short)))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n", roff(cmd.CommandPath()))
	if rest := strings.TrimPrefix(cmd.UseLine(), cmd.CommandPath()); rest != "" {
		fmt.Fprintf(&b, "%s\n", roff(strings.TrimSpace(rest)))
	}
	fmt.Fprintf(&b, ".SH DESCRIPTION\n%s", paragraphs(cmd.Long))
	if cmd.HasAvailableSubCommands() {
		b.WriteString(".SH COMMANDS\n")
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", roff(sub.Name()), roff(sub.Short))
			}
		}
	}
	flags(&b, "OPTIONS", cmd.NonInheritedFlags())
	flags(&b, "OPTIONS OF ALL COMMANDS", cmd.InheritedFlags())
	if cmd.Example != "" {
		fmt.Fprintf(&b, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(cmd.Example))
	}
	b.WriteString(".SH SEE ALSO\n")
	cmd.VisitParents(func(p *cobra.Command) {
		fmt.Fprintf(&b, ".BR %s (1),\n", roff(strings.ReplaceAll(p.CommandPath(), " ", "-")))
	})
	for _, sub := range cmd.Commands() {
		if cmd.HasParent() && sub.IsAvailableCommand() && cmd.Name() != "completion" {
			fmt.Fprintf(&b, ".BR %s (1),\n", roff(strings.ReplaceAll(sub.CommandPath(), " ", "-")))
		}
	}
	b.WriteString(".BR portd (8)\n")
	return b.Bytes()
}

func flags(b *bytes.Buffer, title string, set *pflag.FlagSet) {
	if !set.HasAvailableFlags() {
		return
	}
	fmt.Fprintf(b, ".SH %s\n", title)
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		b.WriteString(".TP\n")
		if f.Shorthand != "" {
			fmt.Fprintf(b, "\\fB\\-%s\\fR, ", f.Shorthand)
		}
		fmt.Fprintf(b, "\\fB\\-\\-%s\\fR", roff(f.Name))
		value, text := pflag.UnquoteUsage(f)
		if value != "" {
			fmt.Fprintf(b, " \\fI%s\\fR", roff(value))
		}
		if !slices.Contains([]string{"", "0", "0s", "false", "[]"}, f.DefValue) {
			text += fmt.Sprintf(" (default %s)", f.DefValue)
		}
		fmt.Fprintf(b, "\n%s\n", roff(text))
	})
}

func paragraphs(text string) string {
	var b strings.Builder
	for i, p := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		fmt.Fprintln(&b, roff(p))
	}
	return b.String()
}

// roff escapes what man(7) would take for its own.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "…", "...").Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }
