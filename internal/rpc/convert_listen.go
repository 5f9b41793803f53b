package rpc

import (
	"math"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// toListen changes what is named of what listens already; all, where options are given and nothing is named.
func toListen(req *pb.ListenRequest) (registry.Listen, error) {
	fields := req.GetUpdateMask().GetPaths()
	opt, err := toListenOptions("options", req.GetOptions())
	return registry.Listen{Options: opt, Keep: req.GetOptions() == nil || len(fields) > 0, Fields: fields}, err
}

// toGroup is 0 for a group of one socket, which is none.
func toGroup(n uint32) int {
	if n == 1 {
		return 0
	}
	return int(min(n, math.MaxInt32))
}

func toListenOptions(field string, o *pb.ListenOptions) (out registry.ListenOptions, err error) {
	number := func(n uint32) int { return int(min(n, math.MaxInt32)) } // more is as much too many
	out = registry.ListenOptions{
		Backlog:         number(o.GetBacklog()),
		NoDelayOff:      o != nil && o.NoDelay != nil && !o.GetNoDelay(),
		KeepAliveOff:    o != nil && o.KeepAlive != nil && !o.GetKeepAlive(),
		KeepAliveProbes: number(o.GetKeepAliveProbes()),
		FastOpen:        number(o.GetFastOpen()),
		Mark:            o.GetMark(),
		ReceiveBuffer:   number(o.GetReceiveBuffer()),
		SendBuffer:      number(o.GetSendBuffer()),
	}
	for _, d := range []struct {
		name string
		in   *durationpb.Duration
		out  *time.Duration
	}{
		{"keep_alive_idle", o.GetKeepAliveIdle(), &out.KeepAliveIdle},
		{"keep_alive_interval", o.GetKeepAliveInterval(), &out.KeepAliveInterval},
		{"user_timeout", o.GetUserTimeout(), &out.UserTimeout},
		{"defer_accept", o.GetDeferAccept(), &out.DeferAccept},
	} {
		if *d.out, err = toDuration(field+"."+d.name, d.in); err != nil {
			return out, err
		}
	}
	out.Handoff, err = toHandoffOptions(field+".handoff", o.GetHandoff())
	return out, err
}

func fromListenOptions(o registry.ListenOptions) *pb.ListenOptions {
	noDelay, keepAlive := !o.NoDelayOff, !o.KeepAliveOff
	return &pb.ListenOptions{
		Backlog: uint32(o.Backlog), NoDelay: &noDelay, KeepAlive: &keepAlive,
		KeepAliveIdle: fromDuration(o.KeepAliveIdle), KeepAliveInterval: fromDuration(o.KeepAliveInterval),
		KeepAliveProbes: uint32(o.KeepAliveProbes), UserTimeout: fromDuration(o.UserTimeout), DeferAccept: fromDuration(o.DeferAccept),
		FastOpen: uint32(o.FastOpen), Mark: o.Mark, ReceiveBuffer: uint32(o.ReceiveBuffer), SendBuffer: uint32(o.SendBuffer),
		Handoff: fromHandoffOptions(o.Handoff),
	}
}

// fromDuration is nil for none.
func fromDuration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}
