package main

import (
	"context"

	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

func (c *ctl) serviceListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List this host's own services",
		Long:    "List prints this host's own services, and who gave them. With -q the names alone, each once.",
		Example: "  portctl service list\n  portctl service list -o json",
		Args:    wants(0, 0, ""),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.listOwn(cmd.Context()) },
	}
}

func (c *ctl) listOwn(ctx context.Context) error {
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer cl.Close()
	own, err := allServices(&pb.ListServicesRequest{Source: pb.EntrySource_ENTRY_SOURCE_HOST}, func(req *pb.ListServicesRequest) (*pb.ListServicesResponse, error) {
		return cl.Services.ListServices(ctx, req)
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
		t.row(oneLine(e.GetName()), placeText(e.GetPorts(), e.GetProtocol()), oneLine(ownerName(e.GetChangedBy())), when(e.GetChangeTime()), oneLine(e.GetDescription()))
	}
	return t.flush()
}

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
