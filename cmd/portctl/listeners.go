package main

import (
	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

const listenersHelp = `Listeners lists the endpoints that listen: how many workers take their connections, how
many connections are handed over per second, over the last ten, and were since portd
started, and how many wait in the kernel's backlog at this moment. Where there is
something to tell of them: how many were handed over once more (again), because their
first worker had died, left, or did not take them, of those the ones taken back from a
worker that was stuck, how many portd has in its hands (held), refused for want of a
worker, or lost, which is an error of portd's or a want of descriptors.

Where no worker is ready it says what becomes of clients: they are "waiting", refused
("refusing"), or not answered ("parking"), as portctl listen --without-worker has it.

With -v all of that, the strategy, and how long connections waited from when they were established until
they were handed over, by a sample: half of them at most P50, all but one in a hundred at
most P99, and the longest backlog that the kernel keeps.

You see those of your own reservations; root and the user that portd runs as see all.`

// listenerColumns are what is told of a listener.
var listenerColumns = []column[*pb.Listener]{
	{head: "ENDPOINT", cell: func(l *pb.Listener) string { return l.GetEndpoint().GetText() }},
	{head: "WORKERS", cell: func(l *pb.Listener) string { return number(l.GetWorkers()) }},
	{head: "CLIENTS", when: ifAny, cell: func(l *pb.Listener) string { return receptionText(l.GetReception()) }},
	{head: "STRATEGY", when: ifWide, cell: func(l *pb.Listener) string { return enumWord(word(l.GetOptions().GetHandoff().GetStrategy())) }},
	{head: "RATE", cell: func(l *pb.Listener) string { return rate(l.GetPerSecond()) }},
	{head: "HANDED OVER", cell: func(l *pb.Listener) string { return number(l.GetHandedOver()) }},
	{head: "AGAIN", when: ifAny, cell: func(l *pb.Listener) string { return some(l.GetRedelivered()) }},
	{head: "TAKEN BACK", when: ifAny, cell: func(l *pb.Listener) string { return some(l.GetTakenBack()) }},
	{head: "WAITING", cell: func(l *pb.Listener) string { return number(l.GetWaiting()) }},
	{head: "HELD", when: ifAny, cell: func(l *pb.Listener) string { return some(l.GetHeld()) }},
	{head: "REFUSED", when: ifAny, cell: func(l *pb.Listener) string { return some(l.GetRefused()) }},
	{head: "LOST", when: ifAny, cell: func(l *pb.Listener) string { return some(l.GetLost()) }},
	{head: "P50", when: ifWide, cell: func(l *pb.Listener) string { return quantile(l.GetWait(), 0.5) }},
	{head: "P99", when: ifWide, cell: func(l *pb.Listener) string { return quantile(l.GetWait(), 0.99) }},
	{head: "BACKLOG", when: ifWide, cell: func(l *pb.Listener) string { return number(l.GetOptions().GetBacklog()) }},
	{head: "OWNER", cell: func(l *pb.Listener) string { return ownerName(l.GetOwner()) }},
	{head: "NAME", cell: func(l *pb.Listener) string { return l.GetReservationName() }},
}

func (c *ctl) listenersCommand() *cobra.Command {
	var wide bool
	cmd := c.handoffCommand("listeners", "List what listens, and how much was handed over", listenersHelp,
		func(cmd *cobra.Command, cl *client.Client, reservation string) error {
			all, req := &pb.ListListenersResponse{}, &pb.ListListenersRequest{Reservation: reservation}
			err := pages(func(token string) (string, error) {
				req.PageToken = token
				page, err := cl.Handoff.ListListeners(cmd.Context(), req)
				all.Listeners = append(all.Listeners, page.GetListeners()...)
				return page.GetNextPageToken(), err
			})
			if err != nil || c.json() {
				return c.jsonUnless(err, all)
			}
			return printColumns(c, all.GetListeners(), wide, listenerColumns, func(l *pb.Listener) string { return l.GetEndpoint().GetText() })
		})
	cmd.Flags().BoolVarP(&wide, "verbose", "v", false, "all that there is to tell")
	return cmd
}

// quantile is the bound of the bucket in which a part of the samples end: that many of them took at most so long.
func quantile(h *pb.LatencyHistogram, part float64) string {
	if h.GetSamples() == 0 {
		return ""
	}
	n, below := uint64(0), ""
	for _, b := range h.GetBuckets() {
		n += b.GetCount()
		if b.GetAtMost() == nil {
			break
		}
		below = short(b.GetAtMost())
		if float64(n) >= part*float64(h.GetSamples()) {
			return "≤" + below
		}
	}
	return ">" + below
}
