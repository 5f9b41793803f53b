package binder

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// Bind holds every port of want's endpoint, or none, and adds the sockets to its key. Ports of which a fitting socket came with
// Config.Items are had by that, just as it is: none is bound anew, and one that listens goes on listening. The errors are those of
// registry.Binder, and name the endpoint.
func (b *Binder) Bind(ctx context.Context, want registry.Bind) error {
	var socks []*socket
	var err error
	if want.Endpoint.Proto == registry.Unix {
		s, err := b.bindPath(&want)
		if err != nil {
			return fmt.Errorf("bind %v: %w", want.Endpoint, b.whereFull(err))
		}
		b.add(want.Key, []*socket{s})
		return nil
	}
	if lost := b.in(want.Endpoint.Netns, func() error {
		socks, err = b.bind(ctx, &want)
		return nil
	}); lost != nil {
		return fmt.Errorf("bind %v: %w", want.Endpoint, lost)
	}
	if err != nil {
		return fmt.Errorf("bind %w", err)
	}
	b.add(want.Key, socks)
	return nil
}

// manyRefused is how many sockets wait for their second try together, each with a descriptor.
const manyRefused = 64

func (b *Binder) bind(ctx context.Context, want *registry.Bind) (_ []*socket, err error) {
	ep := &want.Endpoint
	r, err := b.recipeFor(ep, want.Options)
	if err != nil {
		return nil, about(ep, err)
	}
	socks := make([]*socket, 0, ep.Ports())
	defer func() {
		if err == nil {
			return
		}
		err = b.whereFull(err)
		b.giveUp(socks)
	}()

	var refused, idle []*socket
	for port := int(ep.First); port <= int(ep.Last); port++ {
		if err := ctx.Err(); err != nil {
			return nil, about(ep, err)
		}
		if taken := b.take(r, uint16(port)); len(taken) > 0 {
			socks = append(socks, taken...)
			continue
		}
		s, err := r.open(uint16(port))
		if err != nil {
			return nil, about(ep, err)
		}
		socks = append(socks, s)
		err = r.bind(s)
		switch {
		case err == nil:
			idle = b.parkEarly(append(idle, s))
		case errors.Is(err, unix.EADDRINUSE) && b.mayFallBack(want):
			refused = append(refused, s)
			if len(refused) < manyRefused {
				continue
			}
			if err := b.overLeftovers(ctx, r, refused); err != nil {
				return nil, err
			}
			idle, refused = b.parkEarly(append(idle, refused...)), nil
		default:
			return nil, about(&s.ep, r.bindError(s.ep.First, err))
		}
	}
	if len(refused) > 0 {
		if err := b.overLeftovers(ctx, r, refused); err != nil {
			return nil, err
		}
	}
	if want.Options.Group > 1 && !socks[0].grouped {
		rest, err := r.bindGroup(socks[0])
		if err != nil {
			return nil, about(ep, err)
		}
		socks = append(socks, rest...)
	}
	for _, s := range socks {
		if s.came == nil && s.bag == nil {
			b.kept.put(s)
		}
	}
	return socks, nil
}

// about is an error with the endpoint that it is about. It has a frame of its own, for that of bind is on the stack when the kernel is asked.
//
//go:noinline
func about(ep *registry.Endpoint, err error) error { return fmt.Errorf("%v: %w", *ep, err) }

// giveUp closes what a Bind has bound that failed, and puts back what it has taken.
func (b *Binder) giveUp(socks []*socket) {
	b.putBack(socks)
	var bound []*socket
	parked := false
	for _, s := range socks {
		if s.came == nil {
			bound, parked = append(bound, s), parked || s.bag != nil
		}
	}
	b.closeAll(bound)
	if parked { // which the keeper knows of
		b.kept.settle()
	}
}

// mayFallBack: closed connections leave something behind in TCP only.
func (b *Binder) mayFallBack(want *registry.Bind) bool {
	return b.fallback && !want.Fresh && want.Endpoint.Proto == registry.TCP
}

// overLeftovers binds the sockets that bind(2) refused, where nothing but what closed connections left behind is the cause.
//
// It takes SO_REUSEADDR for a moment, which also lets us in beside a stranger's socket that has it and is bound without
// listening, and the stranger beside us. Hence a look before, for our socket would make the stranger's listen fail; and
// another one once SO_REUSEADDR is off: who came in between shows by then, and nobody comes later.
func (b *Binder) overLeftovers(ctx context.Context, r *recipe, refused []*socket) error {
	b.fallbackMu.Lock()
	defer b.fallbackMu.Unlock()
	for _, s := range refused {
		if err := r.bindOverLeftovers(ctx, s); err != nil {
			return about(&s.ep, err)
		}
	}
	return nil
}

func (r *recipe) bindOverLeftovers(ctx context.Context, s *socket) error {
	if err := onlyLeftovers(ctx, s); err != nil {
		return err
	}
	if err := s.reuse(true); err != nil {
		return err
	}
	err := r.bind(s)
	if err := s.reuse(false); err != nil {
		return err
	}
	if err != nil {
		return r.bindError(s.ep.First, err)
	}
	return onlyLeftovers(ctx, s)
}
