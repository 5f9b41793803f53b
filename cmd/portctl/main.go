// Portctl asks a portd who has which port, reserves ports, and runs programs on them. See portctl(1).
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	// No signal is caught: what a signal ends midway, the session's lease or the next call puts right. Run has its own way.
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is portctl as a function: arguments in, exit code out.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := &ctl{stdin: stdin, stdout: stdout, stderr: stderr, out: bufio.NewWriter(stdout)}
	root := c.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(c.out)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !c.understood {
		err = usageError(err.Error())
	}
	if exitCode(err) == exitUsage {
		help := cmd.CommandPath()
		if near := root.SuggestionsFor(firstWord(args)); cmd == root && len(near) > 0 {
			help += " " + near[0]
		}
		err = try(err, help+" --help")
	}
	err = c.unreached(err, args)
	if flushErr := c.out.Flush(); err == nil {
		err = flushErr
	}
	if err != nil {
		c.complain(err)
	}
	return exitCode(err)
}

func firstWord(args []string) string {
	for _, a := range args {
		if !strings.HasPrefix(a, "-") {
			return a
		}
	}
	return ""
}

// complain says on standard error what went wrong, why, and what to do next. Errors quote what others have sent: a server's
// certificate, another program's name.
func (c *ctl) complain(err error) {
	text, next := explain(err)
	if text == "" {
		return
	}
	c.warn("%s", text)
	if next != "" {
		c.warn("try: %s", next)
	}
}

// said is talk on one line, with nothing in it that a terminal would obey.
func said(text string) string { return printable(strings.ReplaceAll(text, "\n", "; ")) }

// say talks to the person in front of the terminal; -q silences it.
func (c *ctl) say(format string, args ...any) {
	if !c.quiet {
		c.warn(format, args...)
	}
}

// warn says what changes the meaning of the data, which scripts have to know too. What was printed before stands before it,
// wherever both end up.
func (c *ctl) warn(format string, args ...any) {
	_ = c.out.Flush() // an error stays, and is that of the next write
	fmt.Fprintf(c.stderr, "portctl: %s\n", said(fmt.Sprintf(format, args...)))
}
