package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// An occupant has the reservations that a program runs on: found, or made and to be ended with it.
type occupant struct {
	*ctl
	cl    *client.Client
	flags runFlags
	prog  string
	s     *client.Session // nil while none was needed
}

// leave ends what was made for the program.
func (o *occupant) leave() {
	if o.s == nil {
		return
	}
	if err := o.s.End(); err != nil {
		o.say("cannot release what %s ran on, portd does so soon: %v", o.prog, err)
	}
}

// A place is what a program serves on: endpoints of a reservation, by what portd calls them.
type place struct {
	ref       string
	res       *pb.Reservation
	endpoints []*pb.AssignedEndpoint
}

// occupy is the reservation that ref means, made where there is none, and listening where it can.
func (o *occupant) occupy(ctx context.Context, ref string) (place, error) {
	p := place{ref: ref}
	var err error
	p.res, err = o.find(ctx, ref)
	if errors.Is(err, client.ErrNotFound) && isEndpoint(ref) {
		p.res, err = o.make(ctx, ref)
		p.ref = p.res.GetId()
	}
	if err != nil {
		return p, err
	}
	recorded := p.res.GetSpec().GetMode() == pb.Mode_MODE_RECORDED
	switch {
	case recorded && !o.flags.recordOnly:
		return p, try(fmt.Errorf("%s is only recorded, portd has no socket of it", endpointsText(p.res)),
			fmt.Sprintf("portctl run --record-only %s -- %s   # which then binds {port} itself", ref, o.prog))
	case !recorded && o.flags.recordOnly:
		return p, try(fmt.Errorf("%s is held by portd, %s could not bind it", endpointsText(p.res), o.prog),
			fmt.Sprintf("portctl run %s -- %s   # which then takes the socket; or portctl release %s", ref, o.prog, nameOrID(p.res)))
	}
	p.endpoints = meant(p.res, p.ref)
	silent := func(a *pb.AssignedEndpoint) bool {
		return streams(a.GetEndpoint().GetProtocol()) && a.GetState() != pb.EndpointState_ENDPOINT_STATE_LISTENING
	}
	if !recorded && slices.ContainsFunc(p.endpoints, silent) {
		_, err = o.cl.Reservations.Listen(ctx, &pb.ListenRequest{Reservation: p.res.GetId()})
		err = lostHint(err)
	}
	return p, err
}

// lostHint says how portd can have a port back that a program serves.
func lostHint(err error) error {
	why := (*client.Error)(nil)
	if !errors.Is(err, client.ErrTaken) || !errors.As(err, &why) {
		return err
	}
	for _, u := range why.Conflict.GetUses() {
		h, e := u.GetHolder(), u.GetEndpoint()
		if ps := h.GetProcesses(); len(ps) > 0 && h.GetState() == pb.SocketState_SOCKET_STATE_LISTENING && e.GetProtocol() == pb.Protocol_PROTOCOL_TCP {
			return try(err, fmt.Sprintf("portctl adopt %s --pid %d   # portd has it again then, and %s serves on", e.GetText(), ps[0].GetPid(), oneLine(ps[0].GetCommand())))
		}
	}
	return err
}

// meant is the endpoints of a reservation that ref means: all where it is not an endpoint itself.
func meant(res *pb.Reservation, ref string) (out []*pb.AssignedEndpoint) {
	want, err := registry.ParseEndpoint(ref)
	for _, a := range res.GetAssigned() {
		have, haveErr := registry.ParseEndpoint(a.GetEndpoint().GetText())
		have.Netns, want.Netns = "", ""
		if err != nil || haveErr != nil || want.Overlaps(have) {
			out = append(out, a)
		}
	}
	return out
}

// find is the reservation that is there. One of somebody else's on the endpoint is none: making one says who has it.
func (o *occupant) find(ctx context.Context, ref string) (*pb.Reservation, error) {
	if isEndpoint(ref) {
		spec, err := parseSpec(ref)
		if err != nil {
			return nil, err
		}
		if spec.GetAny() != nil || len(spec.GetProtocols()) > 1 {
			return nil, client.ErrNotFound // none that is there can be meant
		}
	}
	answer, err := o.cl.Reservations.GetReservation(ctx, &pb.GetReservationRequest{Reservation: ref})
	if err != nil {
		return nil, err
	}
	res := answer.GetReservation()
	if !isEndpoint(ref) {
		return res, nil
	}
	me, err := o.cl.Daemon.GetStatus(ctx, &pb.GetStatusRequest{})
	switch {
	case err != nil:
		return nil, err
	case me.GetCaller() != res.GetOwner() && !me.GetAdmin():
		return nil, client.ErrNotFound
	case o.flags.name != "" && o.flags.name != res.GetName():
		return nil, try(fmt.Errorf("%s is reserved already, as %s, and keeps its name", ref, nameOrID(res)), "portctl run "+nameOrID(res)+" -- "+o.prog)
	}
	return res, nil
}

// make reserves for as long as the program runs, or for good.
func (o *occupant) make(ctx context.Context, ref string) (*pb.Reservation, error) {
	req, err := reserveFlags{name: o.flags.name, recordOnly: o.flags.recordOnly, choice: choiceFlags{count: 1}}.toRequest([]string{ref})
	if err != nil {
		return nil, err
	}
	if !o.flags.keep {
		if o.s == nil {
			// Not the caller's context: it is to outlive a first signal.
			if o.s, err = o.cl.OpenSession(context.WithoutCancel(ctx)); err != nil {
				return nil, err
			}
			go func() {
				<-o.s.Done()
				if err := o.s.Err(); err != nil {
					o.say("%s runs on, but its reservation has ended: %v", o.prog, err)
				}
			}()
		}
		req.LeaseId = o.s.LeaseID()
	}
	answer, err := o.cl.Reservations.Reserve(ctx, req)
	if err != nil {
		if errors.Is(err, client.ErrTaken) {
			// Two runs of one user at the same time: the other one made it.
			if res, findErr := o.find(ctx, ref); findErr == nil {
				return res, nil
			}
		}
		return nil, runHint(err, ref)
	}
	res, until := answer.GetReservation(), "until "+o.prog+" ends"
	if o.flags.keep {
		until = "until portctl release " + nameOrID(answer.GetReservation())
	}
	if !answer.GetExisted() {
		o.say("%s is reserved %s", endpointsText(res), until)
	}
	return res, nil
}

func runHint(err error, ref string) error {
	if errors.Is(err, client.ErrTaken) || errors.Is(err, client.ErrDenied) {
		protos, _ := registry.SplitProtocol(ref)
		return try(err, "portctl run "+protos+"/any -- PROGRAM")
	}
	return err
}
