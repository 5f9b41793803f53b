package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A giver gives portd back what its program has, when portd was stopped and is there again: such a portd has no sockets of the one
// before, and the port would be lost to it until the program ends.
type giver struct {
	*occupant
	at   []place
	pid  int             // of the program, which this process waits for
	said map[string]bool // endpoints that could not be given, by their texts
}

const (
	shortestPause = 50 * time.Millisecond
	longestPause  = time.Second
)

// giveBack does so until ctx ends; what it has done lasts as long as this process.
func (o *occupant) giveBack(ctx context.Context, at []place, pid int) {
	g := giver{occupant: o, at: at, pid: pid, said: map[string]bool{}}
	for pause := shortestPause; ctx.Err() == nil; pause = min(2*pause, longestPause) {
		stream, err := o.cl.Reservations.WatchReservations(ctx, &pb.WatchReservationsRequest{
			Filter:           &pb.ReservationFilter{States: []pb.EndpointState{pb.EndpointState_ENDPOINT_STATE_LOST}},
			ProgressInterval: durationpb.New(time.Hour),
		})
		for err == nil { // the first answer is there at once, and each one after it is of something that was lost
			if _, err = stream.Recv(); err == nil {
				pause = shortestPause
				g.look(ctx)
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// waitGiving waits for the program, and gives back what it has meanwhile.
func (p *process) waitGiving(o *occupant, at []place) error {
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		o.giveBack(ctx, at, p.cmd.Process.Pid)
	}()
	err := p.wait()
	cancel()
	<-over
	return err
}

// look gives back what is lost.
func (g *giver) look(ctx context.Context) {
	for _, p := range g.at {
		answer, err := g.cl.Reservations.GetReservation(ctx, &pb.GetReservationRequest{Reservation: p.res.GetId()})
		if err != nil {
			continue // it is gone, or portd is; then this comes again
		}
		for _, a := range meant(answer.GetReservation(), p.ref) {
			text := a.GetEndpoint().GetText()
			if a.GetState() != pb.EndpointState_ENDPOINT_STATE_LOST || g.said[text] {
				continue
			}
			if err := g.give(ctx, a); err != nil && ctx.Err() == nil && !errors.Is(err, client.ErrUnavailable) {
				g.said[text] = true
				g.say("portd was restarted and has lost %s: %s has it alone until it ends, and no other run can join it: %v", text, g.prog, err)
				if errors.Is(err, client.ErrDenied) {
					g.say("try: sudo portctl%s adopt %s --pid %d", g.socketFlag(), text, g.pid)
				}
			}
		}
	}
}

// give has portd adopt the program's socket, by way of this process, and stands for the program as a worker.
func (g *giver) give(ctx context.Context, a *pb.AssignedEndpoint) error {
	e := a.GetEndpoint()
	if e.GetProtocol() != pb.Protocol_PROTOCOL_TCP || e.GetPorts().GetFirst() != e.GetPorts().GetLast() {
		return errors.New("only a TCP socket of one port can be given back")
	}
	sockets, err := listeningOf(g.pid, int(e.GetPorts().GetFirst()))
	defer func() {
		for _, fd := range sockets {
			_ = unix.Close(fd)
		}
	}()
	switch {
	case err != nil:
		return fmt.Errorf("its socket cannot be had: %w", err)
	case len(sockets) == 0:
		return fmt.Errorf("process %d does not have the socket any more", g.pid)
	}
	spec, err := parseSpec(e.GetText())
	if err != nil {
		return err
	}
	if _, err := g.cl.Reservations.Adopt(ctx, &pb.AdoptRequest{Endpoint: spec, Pid: int32(os.Getpid())}); err != nil {
		return err
	}
	attached, err := client.Attach(ctx, client.AttachConfig{Socket: g.cl.HandoffPath(), Wishes: []client.Wish{{Reference: e.GetText(), Socket: true}}})
	if err != nil {
		return err
	}
	for _, l := range attached.Listeners {
		for _, s := range l.Sockets {
			_ = s.Close()
		}
	}
	context.AfterFunc(ctx, func() { _ = attached.Close() })
	return nil
}

// listeningOf are duplicates of the sockets by which a process listens on a TCP port, the caller's to close. A child's are a process's own to take,
// unless it guards them (ptrace(2)).
func listeningOf(pid, port int) (sockets []int, err error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pidfd)
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	open, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, o := range open {
		link, _ := os.Readlink(filepath.Join(dir, o.Name()))
		number, err := strconv.Atoi(o.Name())
		if is, _ := filepath.Match("socket:*", link); err != nil || !is || seen[link] {
			continue
		}
		seen[link] = true
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		if errors.Is(err, unix.EBADF) { // closed meanwhile
			continue
		}
		if err != nil {
			return sockets, err
		}
		if listensOn(fd, port) {
			sockets = append(sockets, fd)
		} else {
			_ = unix.Close(fd)
		}
	}
	return sockets, nil
}

func listensOn(fd, port int) bool {
	accepts, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || accepts == 0 {
		return false
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	switch at := at.(type) {
	case *unix.SockaddrInet4:
		return at.Port == port
	case *unix.SockaddrInet6:
		return at.Port == port
	}
	return false
}
