package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

const statusHelp = `Status says which portd answers, who keeps its ports open should it die, since when they
have been and how often it was restarted or upgraded, who you are to it, what it has, which
policy file it goes by and why it could not be read again, which IANA registry it answers
from, with where and when it was imported and what portctl import --undo would bring back,
and what this kernel lacks for it. With -q the control socket alone.`

func (c *ctl) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Say which portd answers, and how it is",
		Long:    statusHelp,
		Example: "  portctl status\n  PORTD_SOCKET=/run/portd/portd.sock portctl status",
		Args:    wants(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer cl.Close()
			st, err := cl.Daemon.GetStatus(cmd.Context(), &pb.GetStatusRequest{})
			switch {
			case err != nil:
				return err
			case c.json():
				return c.printJSON(st)
			case c.quiet:
				_, err := fmt.Fprintln(c.out, cl.SocketPath())
				return err
			}
			return c.printStatus(st, cl.SocketPath())
		},
	}
}

func (c *ctl) printStatus(st *pb.GetStatusResponse, socket string) error {
	t := c.table()
	t.row("portd", fmt.Sprintf("%s  pid %d, %s, since %s", st.GetVersion(), st.GetPid(), ownerName(fmt.Sprintf("uid:%d", st.GetUid())), full(st.GetStartTime())))
	custodyRows(t, st.GetCustody())
	t.row("socket", socket)
	t.row("state", fmt.Sprintf("%s  schema %d", st.GetStateDir(), st.GetSchemaVersion()))
	t.row("store", fmt.Sprintf("%s  revision %d, events from %d on", st.GetStoreId(), st.GetRevision(), st.GetOldestRevision()))
	you := ownerText(st.GetCaller())
	if st.GetAdmin() {
		you += ", who may do everything"
	}
	t.row("you", you)
	has := fmt.Sprintf("%s, %s, %s", count(int(st.GetReservations()), "reservation"), count(int(st.GetListeners()), "listener"), count(int(st.GetWorkers()), "worker"))
	if st.GetLost() > 0 {
		has += fmt.Sprintf("; %d lost (portctl list --state lost)", st.GetLost())
	}
	t.row("has", has)
	for _, why := range st.GetReadOnly() {
		t.row("read-only", oneLine(why))
	}
	handoffRow(t, st.GetHandoff())
	policyRows(t, st.GetPolicy())
	registryRows(t, st.GetServiceRegistry())
	var missing []*pb.KernelFeature
	for _, f := range st.GetKernelFeatures() {
		if !f.GetAvailable() {
			missing = append(missing, f)
		}
	}
	if len(missing) == 0 {
		t.row("kernel", "has all that portd uses")
	}
	for _, f := range missing {
		t.row("kernel", "lacks "+f.GetName()+": "+f.GetConsequence())
	}
	return t.flush()
}

// custodyRows says who has what portd has, and how often that was needed.
func custodyRows(t table, c *pb.CustodyStatus) {
	if c == nil {
		return // a portd that does not say
	}
	var who string
	switch {
	case c.GetKeeperPid() != 0:
		who = fmt.Sprintf("pid %d", c.GetKeeperPid())
	case c.GetServiceManager():
		who = "the service manager"
	default:
		who = "none: the ports close when portd dies"
	}
	if c.GetHolderPid() != 0 {
		who += fmt.Sprintf(", holder pid %d", c.GetHolderPid())
	} else {
		who += ", no holder: connections that portd has in hand are lost then"
	}
	t.row("keeper", who)
	if c.GetSince() == nil {
		return
	}
	open := "since " + full(c.GetSince())
	if n := c.GetRestarts(); n > 0 {
		open += fmt.Sprintf(", restarted %s, last %s", times(int(n)), full(c.GetRestartTime()))
	}
	if n := c.GetUpgrades(); n > 0 {
		open += ", upgraded " + times(int(n))
	}
	t.row("open", open)
}

// times is how often: "once", "3 times".
func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// handoffRow says how much was handed over, and what of it is out of the ordinary.
func handoffRow(t table, h *pb.HandoffStatus) {
	if h.GetHandedOver()+h.GetRefused()+h.GetLost() == 0 {
		return
	}
	text := fmt.Sprintf("%s handed over, %s", count(int(h.GetHandedOver()), "connection"), rate(h.GetPerSecond()))
	for _, n := range []struct {
		n    uint64
		what string
	}{
		{h.GetRedelivered(), "once more"},
		{h.GetTakenBack(), "taken back"},
		{uint64(h.GetHeld()), "held"},
		{h.GetRefused(), "refused"},
		{h.GetLost(), "lost"},
	} {
		if n.n > 0 {
			text += fmt.Sprintf(", %d %s", n.n, n.what)
		}
	}
	t.row("handoff", text+" (portctl listeners)")
}

// registryRows says which IANA registry answers, since when, and what others there are.
func registryRows(t table, reg *pb.ServiceRegistryStatus) {
	t.row("iana", registryLine(reg))
	if reg.GetFrom() != "" {
		t.row("imported", fmt.Sprintf("from %s by %s, %s", oneLine(reg.GetFrom()), oneLine(ownerName(reg.GetImportedBy())), full(reg.GetImportTime())))
	}
	if p := reg.GetPrevious(); p != nil {
		t.row("previous", registryLine(p)+" (portctl import --undo)")
	}
	// Both are days as 2006-01-02, which sort as they are.
	if built := reg.GetEmbeddedDate(); reg.GetSource() != registry.Embedded.String() && reg.GetDate() != "" && built > reg.GetDate() {
		t.row("built in", fmt.Sprintf("registry of %s, which is newer (portctl import --embedded)", oneLine(built)))
	}
	if n := int(reg.GetHostEntries()); n > 0 {
		t.row("own", count(n, "service")+" of this host's own (portctl service list)")
	}
}

func registryLine(reg *pb.ServiceRegistryStatus) string {
	return fmt.Sprintf("%s, %s records, %s, %s", registryDate(reg.GetDate()), thousands(reg.GetRecords()), oneLine(reg.GetSource()), digestText(reg))
}

func (c *ctl) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of portctl",
		Long:  "Version prints the version of portctl itself; status says that of the portd that answers.",
		Args:  wants(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			version := "unknown"
			if info, ok := debug.ReadBuildInfo(); ok {
				version = info.Main.Version
			}
			if c.quiet {
				_, err := fmt.Fprintln(c.out, version)
				return err
			}
			_, err := fmt.Fprintln(c.out, strings.Join([]string{"portctl", version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}, " "))
			return err
		},
	}
}
