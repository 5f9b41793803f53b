package main

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"time"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

// IANA's own files. Both say the same, but of when they are: a CSV is taken for as new as its latest entry.
const (
	ianaXML = "https://www.iana.org/assignments/service-names-port-numbers/service-names-port-numbers.xml"
	ianaCSV = "https://www.iana.org/assignments/service-names-port-numbers/service-names-port-numbers.csv"
)

const importHelp = `Import puts another edition of the IANA registry in place of the one that portd answers
from: IANA's own CSV or XML, gzipped or not, from a file, from standard input, or by
HTTPS. portd checks all of it first, and takes it whole or not at all; lookups go on
meanwhile. This host's own services (portctl service) stay, and still win. Only root and
the user that portd runs as may do it. What looks cut off, or older by its entries, is
taken with --force only.

IANA publishes the registry at
  ` + ianaXML + `
  ` + ianaCSV + `

Only https is fetched, at most 16 MiB. When the registry that answers came from the same
URL, the server is asked whether it has changed since. Certificates are checked against
those of the system, or of $SSL_CERT_FILE.

What changes is summarised, and with --dry-run told in full, a line each: + is added,
- removed, ~ renamed, and * has changed in the columns that are named. --undo brings the
registry from before the last import back; done twice, the import is there again. With
-q the date of the registry that answers then, or the bare changes of a dry run.`

type importFlags struct {
	url, date                     string
	timeout                       time.Duration
	dryRun, force, undo, embedded bool

	line string // the command line, without --dry-run
}

func (c *ctl) importCommand() *cobra.Command {
	var f importFlags
	cmd := &cobra.Command{
		Use:   "import FILE | - | --url URL | --undo | --embedded",
		Short: "Take another edition of the IANA registry",
		Long:  importHelp,
		Example: `  portctl import --url ` + ianaXML + `
  portctl import service-names-port-numbers.xml --dry-run
  portctl import service-names-port-numbers.csv.gz --date 2026-08-17
  ssh build cat registry.csv | portctl import -
  portctl import --undo`,
		Args:        wants(0, 1, ""),
		Annotations: map[string]string{anyBytes: "FILE"},
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		file := ""
		if len(args) > 0 {
			file = args[0]
		}
		if f.url == "" && cmd.Flags().Changed("timeout") {
			return usagef("--timeout goes with --url")
		}
		if err := f.check(file, len(args)); err != nil {
			return err
		}
		f.line = strings.Replace(again(cmd, args), " --dry-run", "", 1)
		return importHint(c.takeRegistry(cmd.Context(), file, f), cmd, args)
	}
	flags := cmd.Flags()
	flags.StringVar(&f.url, "url", "", "fetch the registry from this `URL`, which is https")
	flags.DurationVar(&f.timeout, "timeout", 2*time.Minute, "how long the fetch may take in all")
	flags.StringVar(&f.date, "date", "", "the date of a CSV, `YYYY-MM-DD`, instead of that of its latest entry")
	flags.BoolVar(&f.dryRun, "dry-run", false, "tell every change, and change nothing")
	flags.BoolVar(&f.force, "force", false, "take also what does not look like the next edition; fetch also what has not changed")
	flags.BoolVar(&f.undo, "undo", false, "bring back the registry from before the last import")
	flags.BoolVar(&f.embedded, "embedded", false, "go back to the registry that portd was built with")
	return cmd
}

// check says whether the flags go together: there is one source, and the others are about it.
func (f importFlags) check(file string, args int) error {
	sources := args
	for _, is := range []bool{f.url != "", f.undo, f.embedded} {
		if is {
			sources++
		}
	}
	back := f.undo || f.embedded
	switch {
	case sources == 0:
		return try(usagef("a file is missing, or - or --url or --undo"), "portctl import --url "+ianaXML)
	case sources > 1:
		return usagef("one of FILE, --url, --undo and --embedded says which registry; say it once")
	case args > 0 && file == "":
		return usagef("the name of the file is empty")
	case back && (f.date != "" || f.force):
		return usagef("--date and --force are for a file or a URL")
	case f.timeout <= 0:
		return usagef("--timeout %v: it must be longer than nothing", f.timeout)
	}
	if f.date != "" {
		if _, err := time.Parse(time.DateOnly, f.date); err != nil {
			return usagef("--date %q is not a day like 2026-08-17", f.date)
		}
	}
	return nil
}

func (c *ctl) takeRegistry(ctx context.Context, file string, f importFlags) error {
	switch {
	case f.undo || f.embedded:
		return c.undoImport(ctx, f)
	case f.url != "":
		return c.importURL(ctx, f)
	}
	in, err := c.openRegistry(file)
	switch {
	case errors.Is(err, fs.ErrNotExist) && strings.Contains(file, "://"):
		return try(usagef("%s is a URL, not a file", file), "portctl import --url "+quote(file))
	case err != nil:
		return err
	}
	defer in.Close()
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	return c.send(ctx, cl, in, &pb.ImportOptions{DryRun: f.dryRun, Force: f.force, Date: f.date, From: in.from}, f.line)
}

// importURL asks portd first: it knows what it has from there already.
func (c *ctl) importURL(ctx context.Context, f importFlags) error {
	from, err := checkURL(f.url)
	if err != nil {
		return err
	}
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	st, err := cl.Daemon.GetStatus(ctx, &pb.GetStatusRequest{})
	if err != nil {
		return err
	}
	ask := fetch{url: from, timeout: f.timeout}
	has := st.GetServiceRegistry()
	if has.GetFrom() == from && !f.force && (f.date == "" || f.date == has.GetDate()) { // another date is a change, too
		ask.lastModified, ask.etag = has.GetLastModified(), has.GetEtag()
	}
	got, err := c.fetch(ctx, ask)
	if errors.Is(err, errNotModified) {
		return c.notModified(has, f.dryRun)
	} else if err != nil {
		return err
	}
	in, err := newRegistryFile(from, got.body)
	if err != nil {
		return err
	}
	opt := &pb.ImportOptions{
		DryRun: f.dryRun, Force: f.force, Date: f.date, From: from, LastModified: got.lastModified, Etag: got.etag,
	}
	return c.send(ctx, cl, in, opt, f.line)
}

func (c *ctl) notModified(has *pb.ServiceRegistryStatus, dryRun bool) error {
	answer := &pb.ServiceImport{Before: has, After: has, Unchanged: true, DryRun: dryRun}
	switch {
	case c.json():
		return c.printJSON(&pb.ImportServicesResponse{Import: answer})
	case c.quiet:
		return c.printImport(answer)
	}
	since := has.GetLastModified()
	if since == "" {
		since = "it was fetched"
	}
	c.say("not modified since %s: nothing to do, the %s answers", oneLine(since), edition(has))
	return nil
}

// send streams a registry to portd and prints what became of it. The line is for the shell, to do it again.
func (c *ctl) send(ctx context.Context, cl *client.Client, in *registryFile, opt *pb.ImportOptions, line string) error {
	did, err := cl.ImportServices(ctx, in, opt)
	switch {
	case err != nil:
		return lostSight(err, opt.GetDryRun())
	case c.json():
		return c.printJSON(&pb.ImportServicesResponse{Import: did})
	}
	if err := c.printImport(did); err != nil || did.GetUnchanged() {
		return err
	}
	c.printOverridden(ctx, cl, did)
	if did.GetAfter().GetDate() == "" {
		line += " --date YYYY-MM-DD"
		c.say("nothing in it says of when it is; to give it a date: %s", line)
	}
	if opt.GetDryRun() {
		c.say("to do it: %s", line)
	} else {
		c.say("to go back: portctl import --undo")
	}
	return nil
}

func (c *ctl) undoImport(ctx context.Context, f importFlags) error {
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	answer, err := cl.Services.UndoImport(ctx, &pb.UndoImportRequest{DryRun: f.dryRun, Embedded: f.embedded})
	switch {
	case err != nil:
		return lostSight(err, f.dryRun)
	case c.json():
		return c.printJSON(answer)
	}
	err = c.printImport(answer.GetImport())
	if err == nil && !answer.GetImport().GetUnchanged() {
		c.printOverridden(ctx, cl, answer.GetImport())
	}
	switch {
	case err != nil || answer.GetImport().GetUnchanged():
	case f.dryRun:
		c.say("to do it: %s", f.line)
	default:
		c.say("to have the other one again: portctl import --undo")
	}
	return err
}
