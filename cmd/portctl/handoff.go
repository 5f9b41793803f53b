package main

import (
	"fmt"
	"strings"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

const listenersHelp = `Listeners lists the endpoints that listen: how many workers take their connections, how
many connections were handed over since portd started, and how many of those a second
time because their first worker had died.

You see those of your own reservations; root and the user that portd runs as see all.`

func (c *ctl) listenersCommand() *cobra.Command {
	return c.handoffCommand("listeners", "List what listens, and how much was handed over", listenersHelp,
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
			t := c.listing(len(all.GetListeners()), "ENDPOINT", "WORKERS", "HANDED OVER", "AGAIN", "BACKLOG", "OWNER", "NAME")
			for _, l := range all.GetListeners() {
				if c.quiet {
					t.row(l.GetEndpoint().GetText())
					continue
				}
				t.row(l.GetEndpoint().GetText(), fmt.Sprint(l.GetWorkers()), fmt.Sprint(l.GetHandedOver()),
					fmt.Sprint(l.GetRedelivered()), fmt.Sprint(l.GetOptions().GetBacklog()), ownerName(l.GetOwner()), l.GetReservationName())
			}
			return t.flush()
		})
}

const workersHelp = `Workers lists the programs that serve on ports of portd's: those that take connections,
and those that have the socket itself ("socket", as portctl run gives it), whose
connections portd does not see.

You see those of your own reservations; root and the user that portd runs as see all.`

func (c *ctl) workersCommand() *cobra.Command {
	return c.handoffCommand("workers", "List the programs that serve", workersHelp,
		func(cmd *cobra.Command, cl *client.Client, reservation string) error {
			all, req := &pb.ListWorkersResponse{}, &pb.ListWorkersRequest{Reservation: reservation}
			err := pages(func(token string) (string, error) {
				req.PageToken = token
				page, err := cl.Handoff.ListWorkers(cmd.Context(), req)
				all.Workers = append(all.Workers, page.GetWorkers()...)
				return page.GetNextPageToken(), err
			})
			if err != nil || c.json() {
				return c.jsonUnless(err, all)
			}
			t := c.listing(len(all.GetWorkers()), "PROGRAM", "PID", "OWNER", "SERVES", "AS", "SENT", "DONE", "SINCE", "ID")
			for _, w := range all.GetWorkers() {
				if c.quiet {
					t.row(w.GetId())
					continue
				}
				for i, l := range w.GetListeners() {
					as, sent, done := word(l.GetState()), fmt.Sprint(w.GetSent()), fmt.Sprint(w.GetDone())
					if l.GetSocket() {
						as, sent, done = "socket", "", ""
					}
					if i > 0 {
						t.row("", "", "", l.GetEndpoint().GetText(), as)
						continue
					}
					t.row(w.GetCommand(), fmt.Sprint(w.GetPid()), ownerName(w.GetOwner()), l.GetEndpoint().GetText(), as,
						sent, done, when(w.GetAttachTime()), w.GetId())
				}
			}
			return t.flush()
		})
}

const connectionsHelp = `Connections lists the connections that were handed over lately, the newest first: when,
from where, and to which worker. portd keeps some thousands of them and forgets them
when it stops. A second delivery, after a worker had died, is marked "again".

You see those of your own reservations; root and the user that portd runs as see all.`

func (c *ctl) connectionsCommand() *cobra.Command {
	var worker string
	cmd := c.handoffCommand("connections", "List the connections handed over lately", connectionsHelp,
		func(cmd *cobra.Command, cl *client.Client, reservation string) error {
			all, req := &pb.ListConnectionsResponse{}, &pb.ListConnectionsRequest{Reservation: reservation, WorkerId: worker}
			err := pages(func(token string) (string, error) {
				req.PageToken = token
				page, err := cl.Handoff.ListConnections(cmd.Context(), req)
				all.Connections = append(all.Connections, page.GetConnections()...)
				return page.GetNextPageToken(), err
			})
			if err != nil || c.json() {
				return c.jsonUnless(err, all)
			}
			t := c.listing(len(all.GetConnections()), "ACCEPTED", "PEER", "LISTENER", "PID", "WORKER", "")
			for _, conn := range all.GetConnections() {
				if c.quiet {
					t.row(conn.GetPeer())
					continue
				}
				again := ""
				if conn.GetRedelivered() {
					again = "again"
				}
				t.row(full(conn.GetAcceptTime()), conn.GetPeer(), conn.GetListener().GetText(), fmt.Sprint(conn.GetWorkerPid()),
					conn.GetWorkerId(), again)
			}
			return t.flush()
		})
	cmd.Flags().StringVar(&worker, "worker", "", "only those of this worker, by its `id`")
	return cmd
}

// handoffCommand is a command that lists something of all reservations or of one.
func (c *ctl) handoffCommand(name, short, long string, list func(*cobra.Command, *client.Client, string) error) *cobra.Command {
	return &cobra.Command{
		Use:               name + " [RESERVATION]",
		Short:             short,
		Long:              long,
		Example:           "  portctl " + name + "\n  portctl " + name + " tcp/8080",
		Args:              wants(0, 2, ""),
		ValidArgsFunction: c.completeReservations,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer cl.Close()
			return list(cmd, cl, strings.Join(args, " "))
		},
	}
}
