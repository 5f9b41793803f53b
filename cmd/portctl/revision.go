package main

import (
	"errors"

	"github.com/portd/portd/client"
	"github.com/spf13/cobra"
)

// ifRevision is the revision at which a reservation must still be to be changed; 0 is whatever it is at.
type ifRevision int64

func (r *ifRevision) flag(cmd *cobra.Command) {
	cmd.Flags().Int64Var((*int64)(r), "if-revision", 0, "only if the reservation still is at this `revision`, as show tells it")
}

// check refuses what could not be meant: a revision is of one reservation.
func (r *ifRevision) check(cmd *cobra.Command, refs []string) error {
	switch {
	case !cmd.Flags().Changed("if-revision"):
		return nil
	case *r <= 0:
		return usagef("--if-revision %d: revisions begin with 1", *r)
	case len(refs) > 1:
		return usagef("--if-revision is of one reservation, not of %d", len(refs))
	case isLease(refs[0]):
		return usagef("--if-revision is of a reservation; %s is a lease", refs[0])
	}
	return nil
}

// conflictHint says how to see what has changed.
func conflictHint(err error, ref string) error {
	if errors.Is(err, client.ErrConflict) {
		return try(err, "portctl show "+shellWords(ref))
	}
	return err
}
