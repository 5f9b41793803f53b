package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"unicode/utf8"

	"github.com/portd/portd/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A ctl is one run of portctl: where it reads and writes, and what the flags of all commands say.
type ctl struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	out            *bufio.Writer // before stdout; flushed at the end, and by who writes as things happen

	socket, output string
	quiet          bool
	netns          string // of --netns, where a command has that

	understood bool // the arguments made sense; errors before that are of usage
}

const rootHelp = `portctl asks portd, the port authority of this host: what a port is meant for, who
has it, and who may have it. It reserves ports, which nobody else can take then,
and runs programs on them.

An endpoint is written tcp/8080 or "tcp 8080" (every address, IPv4 and IPv6),
tcp4/8080 or tcp6/8080 (one family), udp/127.0.0.1:53, tcp/[::1]:8000-8009,
tcp/https. In another network namespace it is tcp/8080@blue, or --netns blue says so.
A reservation is named by its id, its name or an endpoint of it.

Data is on standard output, talk on standard error. With -o json the data is the
API's message as JSON, one on a line.

portd is looked for at --socket, else $PORTD_SOCKET, else your own
($XDG_RUNTIME_DIR/portd/portd.sock, or in ~/.local/state/portd), else the system's
(/run/portd/portd.sock). "portctl status" says which one answers.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 taken, 5 denied,
6 no portd, or one that does not answer.`

const rootExample = `  portd &
  portctl reserve tcp 8080
  portctl whois 8080
  portctl run tcp/8080 -- ./server
  portctl release tcp 8080`

// root is the command with all that belongs to it.
func (c *ctl) root() *cobra.Command {
	root := &cobra.Command{
		Use:               "portctl",
		Short:             "Ask portd who has which port, reserve ports, run programs on them",
		Long:              rootHelp,
		Example:           rootExample,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		// One line is enough; run has the suggestion as the next step.
		DisableSuggestions:         true,
		SuggestionsMinimumDistance: 2,
		PersistentPreRunE:          c.settle,
	}
	root.SetFlagErrorFunc(flagError)
	flags := root.PersistentFlags()
	flags.StringVar(&c.socket, "socket", "", "control socket of the portd to ask")
	flags.StringVarP(&c.output, "output", "o", "text", "text or json")
	flags.BoolVarP(&c.quiet, "quiet", "q", false, "print the bare value and no talk")
	root.AddGroup(&cobra.Group{ID: "look", Title: "To look:"}, &cobra.Group{ID: "change", Title: "To change:"})
	add := func(group string, cmds ...*cobra.Command) {
		for _, cmd := range cmds {
			cmd.GroupID = group
		}
		root.AddCommand(cmds...)
	}
	add("look", c.whoisCommand(), c.searchCommand(), c.servicesCommand(), c.listCommand(), c.showCommand(), c.leasesCommand(), c.poolsCommand(), c.watchCommand(), c.listenersCommand(), c.workersCommand(),
		c.connectionsCommand(), c.statusCommand(), c.versionCommand())
	add("change", c.reserveCommand(), c.adoptCommand(), c.renewCommand(), c.releaseCommand(), c.listenCommand(), c.closeCommand(), c.drainCommand(), c.setCommand(), c.runCommand(),
		c.serviceCommand(), c.importCommand(), c.backupCommand(), c.restoreCommand(), c.upgradeCommand())
	root.AddCommand(c.programCommand())
	return root
}

// flagError says what a flag takes, rather than which function of Go's could not read it.
func flagError(_ *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err
	}
	want := map[string]string{
		"int": "a number", "int32": "a number", "int64": "a number", "uint": "a number", "uint16": "a number, 0 to 65535", "uint32": "a number",
		"duration": "a time like 30s or 5m", "bool": "true or false",
	}[invalid.GetFlag().Value.Type()]
	if want == "" {
		return err
	}
	return usagef("--%s %q is not %s", invalid.GetFlag().Name, invalid.GetValue(), want)
}

// settle checks what cobra does not.
func (c *ctl) settle(cmd *cobra.Command, args []string) error {
	if c.output != "text" && c.output != "json" {
		return usageError("-o " + c.output + ": text and json are known")
	}
	if cmd.Annotations[anyBytes] == "" {
		for _, a := range args {
			if !utf8.ValidString(a) {
				return usagef("%q is not UTF-8", a)
			}
		}
	}
	var err error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Name != "socket" && !utf8.ValidString(f.Value.String()) {
			err = usagef("--%s %q is not UTF-8", f.Name, f.Value)
		}
	})
	c.understood = err == nil
	return err
}

// anyBytes marks a command whose arguments name files or are a program's; those of the others are strings of the API.
const anyBytes = "any bytes"

func (c *ctl) json() bool { return c.output == "json" }

// dial connects to the portd that is meant. The caller closes the client.
func (c *ctl) dial(ctx context.Context) (*client.Client, error) {
	return client.Dial(ctx, client.Options{Socket: c.socket})
}
