package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/ianadb"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

// What the shell completes. It must be quick and never complain.

const completionPatience = time.Second

// quickly asks portd for something to complete with: the zero T where there is no answer in time, or no portd.
func quickly[T any](ctx context.Context, c *ctl, ask func(context.Context, *client.Client) (T, error)) (answer T) {
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	cl, err := c.dial(ctx)
	if err != nil {
		return answer
	}
	defer cl.Close()
	answer, _ = ask(ctx, cl)
	return answer
}

// completeReservations offers the names, endpoints and ids of the reservations that are there.
func (c *ctl) completeReservations(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	page := quickly(cmd.Context(), c, func(ctx context.Context, cl *client.Client) (*pb.ListReservationsResponse, error) {
		return cl.Reservations.ListReservations(ctx, &pb.ListReservationsRequest{})
	})
	var out []string
	add := func(word, description string) {
		if word != "" && strings.HasPrefix(word, prefix) {
			out = append(out, cobra.CompletionWithDesc(word, description))
		}
	}
	for _, res := range page.GetReservations() {
		add(res.GetName(), endpointsText(res))
		for _, a := range res.GetAssigned() {
			add(a.GetEndpoint().GetText(), word(a.GetState()))
		}
		if strings.HasPrefix(prefix, "rsv") {
			add(res.GetId(), endpointsText(res))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeLeases offers the ids of the leases that the caller may see.
func (c *ctl) completeLeases(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	page := quickly(cmd.Context(), c, func(ctx context.Context, cl *client.Client) (*pb.ListLeasesResponse, error) {
		return cl.Leases.ListLeases(ctx, &pb.ListLeasesRequest{})
	})
	var out []string
	for _, l := range page.GetLeases() {
		if strings.HasPrefix(l.GetId(), prefix) {
			out = append(out, cobra.CompletionWithDesc(l.GetId(), forText(l.GetSpec())))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeServices offers the service names of the registry, this host's own too, and protocols before them.
func (c *ctl) completeServices(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	name, protos := prefix, ""
	if p, rest, ok := strings.Cut(prefix, "/"); ok && isProtocols(p) {
		protos, name = p+"/", rest
	}
	out := serviceNames(protos, name)
	for _, own := range c.ownServices(cmd.Context()) {
		if word := protos + own; strings.HasPrefix(own, name) && !slices.Contains(out, word) {
			out = append(out, word)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// ownServices are the names of this host's own services, if a portd says them.
func (c *ctl) ownServices(ctx context.Context) (names []string) {
	page := quickly(ctx, c, func(ctx context.Context, cl *client.Client) (*pb.ListServicesResponse, error) {
		return cl.Services.ListServices(ctx, &pb.ListServicesRequest{Source: pb.EntrySource_ENTRY_SOURCE_HOST, PageSize: 1000})
	})
	for _, e := range page.GetServices() {
		names = append(names, e.GetName())
	}
	return names
}

// completeProtocols offers the protocols of the registry.
func completeProtocols(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if slices.ContainsFunc(args, isProtocols) {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return []string{"tcp", "udp", "sctp", "dccp"}, cobra.ShellCompDirectiveNoFileComp
}

// completeEndpoints offers protocols, and service names after them.
func completeEndpoints(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	protos, rest, ok := strings.Cut(prefix, "/")
	if !ok {
		return []string{"tcp/", "udp/"}, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	}
	return append(serviceNames(protos+"/", rest), protos+"/any"), cobra.ShellCompDirectiveNoFileComp
}

// serviceNames are those that begin with prefix; with none there are too many to be of help.
func serviceNames(before, prefix string) (out []string) {
	if prefix == "" {
		return nil
	}
	seen := map[string]bool{}
	for r := range ianadb.Embedded().All() {
		if name := r.Name(); strings.HasPrefix(name, prefix) && !seen[name] {
			seen[name] = true
			out = append(out, before+name)
		}
	}
	return out
}

// completeWorkers offers the ids of the workers that the caller may see.
func (c *ctl) completeWorkers(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	page := quickly(cmd.Context(), c, func(ctx context.Context, cl *client.Client) (*pb.ListWorkersResponse, error) {
		return cl.Handoff.ListWorkers(ctx, &pb.ListWorkersRequest{})
	})
	var out []string
	for _, w := range page.GetWorkers() {
		if strings.HasPrefix(w.GetId(), prefix) {
			out = append(out, cobra.CompletionWithDesc(w.GetId(), fmt.Sprintf("%s, pid %d", w.GetCommand(), w.GetPid())))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
