package main

import (
	"context"
	"strings"
	"time"

	"github.com/portd/portd/internal/ianadb"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

// What the shell completes. It must be quick and never complain.

const completionPatience = time.Second

// completeReservations offers the names, endpoints and ids of the reservations that are there.
func (c *ctl) completeReservations(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	cl, err := c.dial(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer cl.Close()
	page, err := cl.Reservations.ListReservations(ctx, &pb.ListReservationsRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
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

// completeServices offers the service names of the IANA registry.
func completeServices(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return serviceNames("", prefix), cobra.ShellCompDirectiveNoFileComp
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
