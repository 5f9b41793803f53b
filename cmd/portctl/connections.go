package main

import (
	"time"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

const connectionsHelp = `Connections lists the connections that were handed over lately, the newest first: from
where and to where, to which worker, how long ago, and what the kernel knows of each at
this moment: its state, the bytes received and acknowledged, and its round trip time. One
without a state is over. A second delivery, after a worker had died, is marked "again".

portd remembers the last 32,768 that it handed over, those before that are still open, and
none when it stops. Where a listener is on several addresses and one client has the same
port to two of them, it is not known which of the two is which: then there are no figures.

You see those of your own reservations; root and the user that portd runs as see all.`

// connectionsOnPage is how many portd gives at once.
const connectionsOnPage = 5000

// A connectionRow is a connection at a moment.
type connectionRow struct {
	*pb.Connection
	now time.Time
}

// known is the cell of something that the kernel knows of a connection.
func known(cell func(connectionRow) string) func(connectionRow) string {
	return func(r connectionRow) string {
		if r.GetRtt() == nil {
			return ""
		}
		return cell(r)
	}
}

// connectionColumns are what is told of a connection.
var connectionColumns = []column[connectionRow]{
	{head: "PEER", cell: func(r connectionRow) string { return r.GetPeer() }},
	{head: "LOCAL", when: ifAny, cell: func(r connectionRow) string { return r.GetLocal() }},
	{head: "LISTENER", cell: func(r connectionRow) string { return r.GetListener().GetText() }},
	{head: "STATE", cell: func(r connectionRow) string { return r.GetState() }},
	{head: "AGE", cell: func(r connectionRow) string { return age(r.GetAcceptTime(), r.now) }},
	{head: "IN", cell: known(func(r connectionRow) string { return bytesText(r.GetBytesReceived()) })},
	{head: "OUT", cell: known(func(r connectionRow) string { return bytesText(r.GetBytesSent()) })},
	{head: "RTT", cell: func(r connectionRow) string { return short(r.GetRtt()) }},
	{head: "PID", cell: func(r connectionRow) string { return number(r.GetWorkerPid()) }},
	{head: "WORKER", cell: func(r connectionRow) string { return r.GetWorkerId() }},
	{head: "ACCEPTED", when: ifWide, cell: func(r connectionRow) string { return full(r.GetAcceptTime()) }},
	{head: "", cell: func(r connectionRow) string {
		if r.GetRedelivered() {
			return "again"
		}
		return ""
	}},
}

func (c *ctl) connectionsCommand() *cobra.Command {
	req, wide := &pb.ListConnectionsRequest{PageSize: connectionsOnPage}, false
	cmd := c.handoffCommand("connections", "List the connections handed over lately", connectionsHelp,
		func(cmd *cobra.Command, cl *client.Client, reservation string) error {
			all := &pb.ListConnectionsResponse{}
			req.Reservation = reservation
			err := pages(func(token string) (string, error) {
				req.PageToken = token
				page, err := cl.Handoff.ListConnections(cmd.Context(), req)
				all.Connections = append(all.Connections, page.GetConnections()...)
				return page.GetNextPageToken(), err
			})
			if err != nil || c.json() {
				return c.jsonUnless(err, all)
			}
			now, rows := time.Now(), make([]connectionRow, len(all.GetConnections()))
			for i, conn := range all.GetConnections() {
				rows[i] = connectionRow{conn, now}
			}
			return printColumns(c, rows, wide, connectionColumns, func(r connectionRow) string { return r.GetPeer() })
		})
	cmd.Example += "\n  portctl connections web --open --worker wrk_k4bq7wz2mfx3tnv5cjra"
	cmd.Flags().StringVar(&req.WorkerId, "worker", "", "only those of this worker, by its `id`")
	_ = cmd.RegisterFlagCompletionFunc("worker", c.completeWorkers)
	cmd.Flags().BoolVar(&req.Open, "open", false, "only those that are still open")
	cmd.Flags().BoolVarP(&wide, "verbose", "v", false, "when each was accepted, too")
	return cmd
}
