package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	pb "github.com/portd/portd/proto/portd/v1"
)

// ListenConfig says how to listen through portd. The zero ListenConfig is a good one.
type ListenConfig struct {
	// Portd says how to reach portd.
	Portd Options
	// Name and Labels are for the reservation, where Listen makes it.
	Name   string
	Labels map[string]string
	// Keep makes a reservation that Listen makes outlive the Listener; else it ends with it, or with this process.
	Keep bool
	// Options of the listening socket; nil means portd's defaults, or those that it listens with already.
	Options *pb.ListenOptions
	// Generation is what this worker calls the release or start that it belongs to: see AttachConfig.
	Generation string
	// NotReady takes no connections before Listener.Ready is called.
	NotReady bool
	// Weight and Priority say what this worker gets beside others: see Wish.
	Weight   uint16
	Priority uint8
	// TCPConn makes Accept return a *net.TCPConn: see AttachConfig.
	TCPConn bool
	// Log is told of portd going away and coming back. Silent when nil.
	Log *slog.Logger
}

// Listen takes connections from an endpoint such as "tcp/8080": see ListenConfig.Listen.
func Listen(ctx context.Context, endpoint string) (*Listener, error) {
	return ListenConfig{}.Listen(ctx, endpoint)
}

// Listen reserves the endpoint if nobody has, makes it listen if it does not, and attaches this process to it as a worker. A
// second Listen by the same owner, in this process or another, joins the first one's pool, and each connection goes to one of
// them. The endpoint may also be the id or the name of a reservation that is there. ctx bounds the call and nothing after it.
//
// The error is ErrTaken where the port is somebody else's, ErrUnsupported for a protocol without connections.
func (cfg ListenConfig) Listen(ctx context.Context, endpoint string) (_ *Listener, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cl, err := Dial(ctx, cfg.Portd)
	if err != nil {
		return nil, err
	}
	var s *Session
	end := func() error {
		var err error
		if s != nil {
			err = s.End()
		}
		return errors.Join(err, cl.Close())
	}
	defer func() {
		if err != nil {
			_ = end()
		}
	}()
	var res *pb.Reservation
	if res, s, err = cfg.reserve(ctx, cl, endpoint); err != nil {
		return nil, err
	}
	if !listens(res) || cfg.Options != nil {
		if _, err := cl.Reservations.Listen(ctx, &pb.ListenRequest{Reservation: res.GetId(), Options: cfg.Options}); err != nil {
			return nil, foreign(res, err)
		}
	}
	attach := AttachConfig{
		Socket: cl.HandoffPath(), Generation: cfg.Generation, TCPConn: cfg.TCPConn,
		Wishes: []Wish{{Reference: res.GetId(), NotReady: cfg.NotReady, Weight: cfg.Weight, Priority: cfg.Priority}},
	}
	l, err := Join(ctx, attach, cfg.Log)
	if err != nil {
		return nil, foreign(res, err)
	}
	l.onClose = end
	return l, nil
}

// reserve finds the reservation or makes one, under a session unless it is to be kept. Without a reservation there is no session.
func (cfg ListenConfig) reserve(ctx context.Context, cl *Client, endpoint string) (res *pb.Reservation, s *Session, err error) {
	made := false
	var last error
	defer func() {
		if s != nil && !made {
			_ = s.End()
			s = nil
		}
	}()
	spec, parseErr := ParseSpec(endpoint)
	for range 3 {
		if spec.GetAny() == nil {
			got, err := cl.Reservations.GetReservation(ctx, &pb.GetReservationRequest{Reservation: endpoint})
			if err == nil {
				return got.GetReservation(), s, nil
			}
			if parseErr != nil || !errors.Is(err, ErrNotFound) {
				return nil, s, err
			}
		}
		if !cfg.Keep && s == nil {
			if s, err = openSession(ctx, cl, cfg.Log); err != nil {
				return nil, nil, err
			}
		}
		req := &pb.ReserveRequest{
			Spec: &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{spec}}, Name: cfg.Name, Labels: cfg.Labels,
		}
		if s != nil {
			req.LeaseId = s.lease
		}
		got, err := cl.Reservations.Reserve(ctx, req)
		if err == nil {
			made = true
			return got.GetReservation(), s, nil
		}
		// Another worker of ours may have been faster: then there is one to be found now.
		if reason := (*Error)(nil); !errors.As(err, &reason) || reason.Reason != "RESERVED" {
			return nil, s, err
		}
		last = err
	}
	return nil, s, last
}

// listens says whether every endpoint that can listen does.
func listens(res *pb.Reservation) bool {
	for _, a := range res.GetAssigned() {
		if a.GetListenOptions() == nil && a.GetEndpoint().GetProtocol() != pb.Protocol_PROTOCOL_UDP {
			return false
		}
	}
	return true
}

// foreign turns "that is not yours" into what it means to somebody who wants to listen: the port is taken.
func foreign(res *pb.Reservation, err error) error {
	if !errors.Is(err, ErrDenied) {
		return err
	}
	e := &Error{text: fmt.Sprintf("%s is taken: %v", res.GetAssigned()[0].GetEndpoint().GetText(), err), is: []error{ErrTaken, ErrDenied}}
	var denied *Error
	if errors.As(err, &denied) {
		e.Reason, e.Metadata, e.status = denied.Reason, denied.Metadata, denied.status
	}
	return e
}
