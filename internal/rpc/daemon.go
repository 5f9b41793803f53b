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
	custody func() Custody
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
		Custody: fromCustody(s.custody),
	}, nil
}

func fromCustody(of func() Custody) *pb.CustodyStatus {
	if of == nil {
		return nil
	}
	c := of()
	return &pb.CustodyStatus{
		KeeperPid: int32(c.Keeper), ServiceManager: c.Manager, HolderPid: int32(c.Holder),
		Since: fromTime(c.Since), Restarts: uint32(c.Restarts), RestartTime: fromTime(c.Restarted), Upgrades: uint32(c.Upgrades),
	}
}
