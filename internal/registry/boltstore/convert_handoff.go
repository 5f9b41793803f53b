package boltstore

import (
	"time"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore/storepb"
)

var strategies = enum[registry.HandoffStrategy, storepb.Strategy]{
	{registry.LeastActive, storepb.Strategy_STRATEGY_LEAST_ACTIVE},
	{registry.RoundRobin, storepb.Strategy_STRATEGY_ROUND_ROBIN},
	{registry.ClientAddress, storepb.Strategy_STRATEGY_CLIENT_ADDRESS},
}

var withoutWorker = enum[registry.WithoutWorker, storepb.WithoutWorker]{
	{registry.Wait, storepb.WithoutWorker_WITHOUT_WORKER_WAIT},
	{registry.Refuse, storepb.WithoutWorker_WITHOUT_WORKER_REFUSE},
	{registry.Park, storepb.WithoutWorker_WITHOUT_WORKER_PARK},
}

func (c *toStored) handoff(o registry.HandoffOptions) *storepb.HandoffOptions {
	if o == (registry.HandoffOptions{}) {
		return nil
	}
	m := &storepb.HandoffOptions{RefuseAfterNanos: int64(o.RefuseAfter), TakeBackAfterNanos: int64(o.TakeBackAfter)}
	var err error
	m.Strategy, err = strategies.number(o.Strategy)
	c.fail(err)
	m.WithoutWorker, err = withoutWorker.number(o.WithoutWorker)
	c.fail(err)
	return m
}

func (c *fromStored) handoff(m *storepb.HandoffOptions) registry.HandoffOptions {
	o := registry.HandoffOptions{
		RefuseAfter: time.Duration(m.GetRefuseAfterNanos()), TakeBackAfter: time.Duration(m.GetTakeBackAfterNanos()),
	}
	var err error
	o.Strategy, err = strategies.meaning(m.GetStrategy())
	c.fail(err)
	o.WithoutWorker, err = withoutWorker.meaning(m.GetWithoutWorker())
	c.fail(err)
	return o
}
