package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

const backupHelp = `Backup writes all that portd has recorded into FILE, or to standard output for "-":
reservations, leases, the service registry, and the history that watch shows. portd goes
on meanwhile, and the backup is of one moment. FILE is there when it is whole, readable
by you alone, and never half of it; one that is there already is replaced. Only root and
the user that portd runs as may do it.

portd copies its state by itself too, each hour in which something has changed: see the
files beside portd.db in its state directory.`

func (c *ctl) backupCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE | -",
		Short: "Copy all that portd has recorded into a file",
		Long:  backupHelp,
		Example: `  portctl backup portd.backup
  portctl backup - | ssh store 'cat > host1.portd-backup'`,
		Args:        wants(1, 1, "a file, or -,"),
		Annotations: map[string]string{anyBytes: "FILE"},
		RunE:        func(cmd *cobra.Command, args []string) error { return c.backup(cmd.Context(), args[0]) },
	}
}

func (c *ctl) backup(ctx context.Context, file string) error {
	if file == "" {
		return usagef("the name of the file is empty")
	}
	if file == "-" && c.json() {
		return usagef("-o json: the backup itself is on standard output; name a file")
	}
	if f, ok := c.stdout.(*os.File); ok && file == "-" && isTerminal(f) {
		return try(errors.New("a backup is not for a terminal to show"), "portctl backup portd.backup")
	}
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	var info *pb.BackupInfo
	if file == "-" {
		info, err = cl.Backup(ctx, c.out)
	} else {
		err = wholeFile(file, func(w io.Writer) error {
			info, err = cl.Backup(ctx, w)
			return err
		})
	}
	switch {
	case err != nil:
		return err
	case c.json():
		return c.printJSON(info)
	}
	c.say("%s", backupText(info))
	return nil
}

// backupName is the file as people know it.
func backupName(file string) string {
	if file == "-" {
		return "standard input"
	}
	return file
}

func backupText(i *pb.BackupInfo) string {
	return fmt.Sprintf("%s as of revision %d, %d bytes, of %s", count(int(i.GetReservations()), "reservation"), i.GetRevision(), i.GetSize(), oneLine(i.GetStoreId()))
}

// wholeFile makes a file, for its owner alone, in one step: it is written under another name beside it and gets its own when it
// is on the disk. Where that fails nothing is left, and what had the name has it still. What is no regular file, as a pipe, is
// written to as it is.
func wholeFile(path string, write func(io.Writer) error) (err error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		return fmt.Errorf("write %s: %w", path, e.Err) // and not what it is called until it is whole
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil // a directory that only lets us write
	}
	_ = d.Sync() // some file systems cannot
	return d.Close()
}

const restoreHelp = `Restore puts a backup, from FILE or from standard input for "-", in the place of what portd
has recorded. All of it is read and checked first: a damaged or cut file, or one that a
newer portd wrote, changes nothing. Then portd starts anew with it, as after a crash:
ports that the backup does not know are closed, those that it knows are held again, and
programs keep the connections that they have. What was recorded before is kept beside it
(portd.db-before-restore in the state directory) until the next restore. A watch that was
going on has to begin again. With --dry-run it is only checked. Only root and the user
that portd runs as may do it.

Where portd does not run, or cannot start: portd --restore FILE, or
portd --restore-newest for the newest whole copy that it has made by itself.`

func (c *ctl) restoreCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "restore FILE | -",
		Short: "Put a backup in the place of what portd has recorded",
		Long:  restoreHelp,
		Example: `  portctl restore portd.backup --dry-run
  portctl restore portd.backup`,
		Args:        wants(1, 1, "a file, or -,"),
		Annotations: map[string]string{anyBytes: "FILE"},
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.restore(cmd.Context(), args[0], dryRun)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "read and check the backup, and change nothing")
	return cmd
}

func (c *ctl) restore(ctx context.Context, file string, dryRun bool) error {
	in := c.stdin
	switch file {
	case "":
		return usagef("the name of the file is empty")
	case "-":
	default:
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	cl, err := c.dial(ctx)
	if err != nil {
		if errors.Is(err, client.ErrNoDaemon) && !dryRun {
			// Which state is meant only who started that portd knows.
			flags := c.socketFlag()
			if flags != "" {
				flags += " --state ITS-STATE"
			}
			return try(err, "portd"+flags+" --restore "+quote(file))
		}
		return err
	}
	defer cl.Close()
	did, err := cl.Restore(ctx, in, &pb.RestoreOptions{DryRun: dryRun})
	switch {
	case errors.Is(err, client.ErrNoDaemon) && !dryRun:
		return try(fmt.Errorf("%w; it is not known whether the backup was restored", err), "portctl status")
	case errors.Is(err, client.ErrInvalid): // the command line was right, the file is not
		return fmt.Errorf("%s: %s; nothing is changed", backupName(file), strings.TrimPrefix(err.Error(), "data: "))
	case err != nil:
		return err
	case c.json():
		return c.printJSON(did)
	case c.quiet:
		fmt.Fprintln(c.out, oneLine(did.GetStoreId()))
		return nil
	}
	c.say("%s", backupText(did.GetBackup()))
	if dryRun {
		c.say("a dry run, nothing was changed; the backup is whole. To do it: portctl restore %s", quote(file))
		return nil
	}
	c.say("restored, as %s, and portd has begun anew with it. What was before: %s", oneLine(did.GetStoreId()), oneLine(did.GetBefore()))
	return nil
}
