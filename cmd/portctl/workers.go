package main

import (
	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
	"github.com/spf13/cobra"
)

const workersHelp = `Workers lists the programs that serve on ports of portd's: those that take connections,
and those that have the socket itself ("socket", as portctl run gives it), whose
connections portd does not see. Of those that take connections it says how many were sent
to them per second, over the last ten, and in all; how many of them they took out of their
queue, and how many they are done with, as far as they say so. One that is "draining" gets
no more, and is "drained" when it has taken what it was sent; one that is "stuck" takes
nothing, and gets none before it does.

You see those of your own reservations; root and the user that portd runs as see all.`

// A workerRow is one listener of a worker. What is told of the worker itself stands in the first of its rows.
type workerRow struct {
	worker   *pb.Worker
	listener *pb.WorkerListener
	first    bool
}

// ofWorker is the cell of something that is told of the worker itself.
func ofWorker(cell func(*pb.Worker) string) func(workerRow) string {
	return func(r workerRow) string {
		if !r.first {
			return ""
		}
		return cell(r.worker)
	}
}

// counted is the cell of a count that is portd's only where it sees the worker's connections.
func counted(cell func(*pb.Worker) string) func(workerRow) string {
	return ofWorker(func(w *pb.Worker) string {
		for _, l := range w.GetListeners() {
			if !l.GetSocket() {
				return cell(w)
			}
		}
		return ""
	})
}

// workerColumns are what is told of a worker.
var workerColumns = []column[workerRow]{
	{head: "PROGRAM", cell: ofWorker((*pb.Worker).GetCommand)},
	{head: "PID", cell: ofWorker(func(w *pb.Worker) string { return number(w.GetPid()) })},
	{head: "OWNER", cell: ofWorker(func(w *pb.Worker) string { return ownerName(w.GetOwner()) })},
	{head: "SERVES", cell: func(r workerRow) string { return r.listener.GetEndpoint().GetText() }},
	{head: "AS", cell: func(r workerRow) string {
		switch {
		case r.listener.GetSocket():
			return "socket"
		case r.listener.GetDrained():
			return "drained"
		case r.worker.GetStuck() && r.listener.GetState() == pb.WorkerState_WORKER_STATE_READY:
			return "stuck"
		}
		return word(r.listener.GetState())
	}},
	{head: "WEIGHT", when: ifAny, cell: func(r workerRow) string {
		if r.listener.GetSocket() || r.listener.GetWeight() == 1 {
			return ""
		}
		return some(r.listener.GetWeight())
	}},
	{head: "PRIORITY", when: ifAny, cell: func(r workerRow) string { return some(r.listener.GetPriority()) }},
	{head: "GENERATION", when: ifAny, cell: ofWorker((*pb.Worker).GetGeneration)},
	{head: "RATE", cell: counted(func(w *pb.Worker) string { return rate(w.GetPerSecond()) })},
	{head: "SENT", cell: counted(func(w *pb.Worker) string { return number(w.GetSent()) })},
	{head: "RECEIVED", cell: counted(func(w *pb.Worker) string { return number(w.GetReceived()) })},
	{head: "DONE", cell: counted(func(w *pb.Worker) string { return number(w.GetDone()) })},
	{head: "TAKEN BACK", when: ifAny, cell: counted(func(w *pb.Worker) string { return some(w.GetTakenBack()) })},
	{head: "SINCE", cell: ofWorker(func(w *pb.Worker) string { return when(w.GetAttachTime()) })},
	{head: "ID", cell: ofWorker((*pb.Worker).GetId)},
}

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
			return c.printWorkers(all.GetWorkers())
		})
}

func (c *ctl) printWorkers(workers []*pb.Worker) error {
	var rows []workerRow
	for _, w := range workers {
		for i, l := range w.GetListeners() {
			rows = append(rows, workerRow{w, l, i == 0})
		}
	}
	return printColumns(c, rows, false, workerColumns, ofWorker((*pb.Worker).GetId))
}
