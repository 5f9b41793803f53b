package rpc

import (
	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

var strategies = map[pb.Strategy]registry.HandoffStrategy{
	pb.Strategy_STRATEGY_UNSPECIFIED:    registry.LeastActive,
	pb.Strategy_STRATEGY_LEAST_ACTIVE:   registry.LeastActive,
	pb.Strategy_STRATEGY_ROUND_ROBIN:    registry.RoundRobin,
	pb.Strategy_STRATEGY_CLIENT_ADDRESS: registry.ClientAddress,
}

var withoutWorker = map[pb.WithoutWorker]registry.WithoutWorker{
	pb.WithoutWorker_WITHOUT_WORKER_UNSPECIFIED: registry.Wait,
	pb.WithoutWorker_WITHOUT_WORKER_WAIT:        registry.Wait,
	pb.WithoutWorker_WITHOUT_WORKER_REFUSE:      registry.Refuse,
	pb.WithoutWorker_WITHOUT_WORKER_PARK:        registry.Park,
}

func toHandoffOptions(field string, o *pb.HandoffOptions) (out registry.HandoffOptions, err error) {
	var known bool
	if out.Strategy, known = strategies[o.GetStrategy()]; !known {
		return out, invalid(field+".strategy", "%d is none that this portd knows", o.GetStrategy())
	}
	if out.WithoutWorker, known = withoutWorker[o.GetWithoutWorker()]; !known {
		return out, invalid(field+".without_worker", "%d is nothing that this portd knows to do", o.GetWithoutWorker())
	}
	if out.RefuseAfter, err = toDuration(field+".refuse_after", o.GetRefuseAfter()); err != nil {
		return out, err
	}
	out.TakeBackAfter, err = toDuration(field+".take_back_after", o.GetTakeBackAfter())
	return out, err
}

func fromHandoffOptions(o registry.HandoffOptions) *pb.HandoffOptions {
	return &pb.HandoffOptions{
		Strategy: pb.Strategy(o.Strategy) + pb.Strategy_STRATEGY_LEAST_ACTIVE, WithoutWorker: pb.WithoutWorker(o.WithoutWorker) + pb.WithoutWorker_WITHOUT_WORKER_WAIT,
		RefuseAfter: fromDuration(o.RefuseAfter), TakeBackAfter: fromDuration(o.TakeBackAfter),
	}
}
