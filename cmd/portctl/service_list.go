package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/registry"
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

// mostStarts bounds how often a list begins anew because the registry changed while it was read.
const mostStarts = 5

// allServices is all pages of one registry as one answer. A page token ends with the registry that it is of; the list
// begins anew then, rather than to mix two.
func allServices(req *pb.ListServicesRequest, page func(*pb.ListServicesRequest) (*pb.ListServicesResponse, error)) (*pb.ListServicesResponse, error) {
	req.PageSize = 1000
	for start := 1; ; start++ {
		all, refused := &pb.ListServicesResponse{}, false
		req.PageToken = ""
		err := pages(func(token string) (string, error) {
			req.PageToken = token
			p, err := page(req)
			if err != nil {
				refused = token != "" && (errors.Is(err, client.ErrInvalid) || errors.Is(err, registry.ErrInvalid))
				return "", err
			}
			all.Services = append(all.Services, p.GetServices()...)
			all.RegistryDate, all.RegistryDigest = cmp.Or(p.GetRegistryDate(), all.RegistryDate), p.GetRegistryDigest()
			return p.GetNextPageToken(), nil
		})
		switch {
		case err == nil:
			return all, nil
		case !refused:
			return nil, err
		case start == mostStarts:
			return nil, try(fmt.Errorf("the service registry changed %d times while it was read: %w", start, err), "portctl watch")
		}
	}
}
