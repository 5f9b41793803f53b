package main

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

const serviceListHelp = `List prints this host's own services by name, and who gave them; of a long description the
beginning, whois has all of it. With -q the names alone, each once. Without a portd it is
what the last one kept, where that may be read.`

func (c *ctl) serviceListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List this host's own services",
		Long:    serviceListHelp,
		Example: "  portctl service list\n  portctl service list -o json",
		Args:    wants(0, 0, ""),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.listOwn(cmd.Context()) },
	}
}

func (c *ctl) listOwn(ctx context.Context) error {
	own, err := c.hostServices(ctx)
	slices.SortStableFunc(own.GetServices(), func(a, b *pb.ServiceEntry) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetPorts().GetFirst(), b.GetPorts().GetFirst()))
	})
	switch {
	case err != nil || c.json():
		return c.jsonUnless(err, own)
	case c.quiet:
		c.printNames(own.GetServices())
		return nil
	case len(own.GetServices()) == 0:
		c.say("this host has none of its own; to give it one: portctl service add NAME PORT/tcp")
		return nil
	}
	t := c.table("SERVICE", "PORTS", "BY", "SINCE", "DESCRIPTION")
	for _, e := range own.GetServices() {
		t.row(oneLine(e.GetName()), placeText(e.GetPorts(), e.GetProtocol()), oneLine(ownerName(e.GetChangedBy())), when(e.GetChangeTime()), shorten(oneLine(e.GetDescription()), mostDescription))
	}
	return t.flush()
}

// hostServices are this host's own from portd, or where there is none those that the last one kept.
func (c *ctl) hostServices(ctx context.Context) (*pb.ListServicesResponse, error) {
	req := &pb.ListServicesRequest{Source: pb.EntrySource_ENTRY_SOURCE_HOST}
	cl, err := c.dial(ctx)
	if err == nil {
		defer cl.Close()
		return allServices(req, func(req *pb.ListServicesRequest) (*pb.ListServicesResponse, error) {
			return cl.Services.ListServices(ctx, req)
		})
	}
	if !errors.Is(err, client.ErrNoDaemon) {
		return nil, err
	}
	kept, where := c.offlineServices()
	if len(kept.Own) == 0 {
		return nil, err // that there are none is not known
	}
	c.warn("%v; these are from %s", err, where)
	return allServices(req, func(req *pb.ListServicesRequest) (*pb.ListServicesResponse, error) { return services.List(kept, req) })
}

// mostDescription is how much of a description is in a table, in characters; whois has all of it.
const mostDescription = 60

// allServices is all pages of one registry as one answer.
func allServices(req *pb.ListServicesRequest, page func(*pb.ListServicesRequest) (*pb.ListServicesResponse, error)) (*pb.ListServicesResponse, error) {
	req.PageSize = mostOnPage
	var all *pb.ListServicesResponse
	err := pagesOfOne(func() { all = &pb.ListServicesResponse{} }, func(token string) (string, error) {
		req.PageToken = token
		p, err := page(req)
		if err != nil {
			return "", err
		}
		all.Services = append(all.Services, p.GetServices()...)
		all.RegistryDate, all.RegistryDigest = p.GetRegistryDate(), p.GetRegistryDigest()
		return p.GetNextPageToken(), nil
	})
	return all, err
}
