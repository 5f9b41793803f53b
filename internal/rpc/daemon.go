package rpc

import (
	"context"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
)

type daemon struct {
	pb.UnimplementedDaemonServiceServer
	reg     *registry.Registry
	workers Workers
	policy  func() PolicyStatus
	info    Info
}

func (s *daemon) GetStatus(ctx context.Context, _ *pb.GetStatusRequest) (*pb.GetStatusResponse, error) {
	me, st := callerOf(ctx), s.reg.Status()
	return &pb.GetStatusResponse{
		Version: s.info.Version, Pid: int32(s.info.PID), Uid: s.info.UID, StartTime: fromTime(s.info.Started),
		StoreId: st.StoreID, BootId: st.BootID, Revision: int64(st.Revision), OldestRevision: int64(st.Oldest), SchemaVersion: st.Schema,
		StateDir: s.info.StateDir, ControlSocket: s.info.ControlSocket, HandoffSocket: s.info.HandoffSocket,
		ServiceRegistry: services.Status(s.reg.Services()), KernelFeatures: fromFeatures(s.info.Features),
		Reservations: uint32(st.Reservations), Lost: uint32(st.Lost), Listeners: uint32(st.Listeners),
		Workers: uint32(len(s.workers.Workers())),
		Caller:  string(me.Principal()), Admin: s.reg.Policy().Admin(me),
		Policy: fromPolicy(s.policy()), Handoff: fromSum(s.workers.Sum()), ReadOnly: s.info.ReadOnly,
	}, nil
}
