package main

import (
	"strings"

	"github.com/portd/portd/client"
	"github.com/spf13/cobra"
)

// handoffCommand is a command that lists something of all reservations or of one.
func (c *ctl) handoffCommand(name, short, long string, list func(*cobra.Command, *client.Client, string) error) *cobra.Command {
	return &cobra.Command{
		Use:               name + " [RESERVATION]",
		Short:             short,
		Long:              long,
		Example:           "  portctl " + name + "\n  portctl " + name + " tcp/8080",
		Args:              wants(0, 2, ""),
		ValidArgsFunction: c.completeReservations,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer cl.Close()
			return list(cmd, cl, strings.Join(args, " "))
		},
	}
}
