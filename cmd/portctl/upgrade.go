package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

const upgradeHelp = `Upgrade puts another portd in the place of the one that runs, which gives it everything:
ports, programs with their connections, reservations. By default that is the file that
portd was started from, where a newer one lies by now. After an upgrade with --binary that
is the file named there, also for SIGUSR2 and systemctl reload, until an upgrade names the
installed one again or portd is stopped and started.

No client of a port is refused or cut off. The new one first shows that it can read a
copy of what is recorded; then it loads everything while the old one goes on, and takes
over when it is ready. Who changes something meanwhile waits a moment. Where it fails at
anything, or is late, the old one simply goes on and you are told why. What is recorded is
brought to the new one's format only when it has taken over; a copy from before is kept.

Only root and the user that portd runs as may do it. SIGUSR2 to portd does the same, as
does systemctl reload. With -q the new pid alone.`

func (c *ctl) upgradeCommand() *cobra.Command {
	var binary string
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Put a newer portd in the place of the one that runs",
		Long:  upgradeHelp,
		Example: `  portctl upgrade
  portctl upgrade --binary ./portd`,
		Args:        wants(0, 0, ""),
		Annotations: map[string]string{anyBytes: "--binary"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("binary") && binary == "" {
				return usageError("--binary: the name of the file is empty")
			}
			err := c.upgrade(cmd.Context(), binary)
			if errors.Is(err, client.ErrDenied) {
				return try(err, sudo(cmd, args))
			}
			return upgradeHint(err)
		},
	}
	cmd.Flags().StringVar(&binary, "binary", "", "the `file` of the portd that takes over; a path that portd can reach")
	_ = cmd.MarkFlagFilename("binary")
	return cmd
}

func (c *ctl) upgrade(ctx context.Context, binary string) error {
	if binary != "" {
		var err error
		if binary, err = filepath.Abs(binary); err != nil { // portd is in another directory
			return err
		}
	}
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	did, err := cl.Upgrades.Upgrade(ctx, &pb.UpgradeRequest{Binary: binary})
	switch {
	case errors.Is(err, client.ErrNoDaemon):
		return try(fmt.Errorf("%w; it is not known whether another one has taken over", err), "portctl status")
	case err != nil:
		return err
	case c.json():
		return c.printJSON(did)
	case c.quiet:
		_, err := fmt.Fprintln(c.out, did.GetNewPid())
		return err
	}
	c.say("portd %s (pid %d) has taken over from %s (pid %d)", oneLine(did.GetNewVersion()), did.GetNewPid(), oneLine(did.GetOldVersion()), did.GetOldPid())
	c.say("it was started from %s, as the next one is without --binary", oneLine(did.GetBinary()))
	c.say("connections waited for %v, changes for %v", tenths(did.GetPause().AsDuration()), tenths(did.GetFrozen().AsDuration()))
	return nil
}

// upgradeHint says what to do about a portd that has not taken over.
func upgradeHint(err error) error {
	why := (*client.Error)(nil)
	if !errors.As(err, &why) || why.Reason != "UPGRADE_FAILED" {
		return err
	}
	switch why.Metadata["step"] {
	case "prove": // nothing but the file has a part in it
		return try(err, quote(why.Metadata["binary"])+" --version   # is it there, and a portd for this machine?")
	case "hello", "prepared", "yours", "good":
		return try(err, "journalctl -u portd -n 50   # or wherever the log of portd is: the new one has said why; then portctl upgrade again")
	}
	return try(err, "portctl upgrade   # again: nothing has changed")
}

// tenths is a duration in milliseconds, to a tenth of one.
func tenths(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
