package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/portd/portd/internal/registry"
)

// netnsFlag lets a command be about another network namespace than the caller's own.
func (c *ctl) netnsFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.netns, "netns", "", "network `namespace`: a name of ip-netns(8), the pid of a process in it, its inode number, or host for portd's own (default: yours)")
	_ = cmd.RegisterFlagCompletionFunc("netns", func(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		names := []string{registry.HostNetns}
		entries, _ := os.ReadDir("/run/netns") // not there where nobody has made any
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return beginning(names, prefix), cobra.ShellCompDirectiveNoFileComp
	})
}

func beginning(all []string, prefix string) (some []string) {
	for _, s := range all {
		if strings.HasPrefix(s, prefix) {
			some = append(some, s)
		}
	}
	return some
}

// there puts the endpoints among some words into the network namespace of --netns. Those that say one themselves stay as they are, paths,
// which are in none, and ids and names, which belong to one reservation wherever that is.
func (c *ctl) there(words []string) []string {
	if c.netns == "" {
		return words
	}
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = w
		if protos, rest := registry.SplitProtocol(w); protos != "" && protos != "unix" && !strings.Contains(rest, "@") {
			out[i] = protos + "/" + rest + "@" + c.netns
		}
	}
	return out
}
