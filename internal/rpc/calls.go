package rpc

import (
	"context"
	"fmt"
	"sync/atomic"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/portd/portd/internal/registry"
)

// A call takes 25 kB and more as long as it lasts, whether its caller has said what he wants or not and whether he reads or not. So there is
// a bound to those of one user. The first connections of a user can have perConnection each, and are bounded by that; to count calls
// costs more than some calls do, so only those of further ones are.
const (
	perConnection = 256
	uncounted     = 4 // connections of a user
	onEach        = 2 // calls of a user on all others, for each connection that he may have
)

// An account is what one user has of portd.
type account struct {
	conns int // sorter.mu guards it
	calls atomic.Int64
	most  int64        // calls
	late  atomic.Int64 // requests: see arrival

	received atomic.Int64 // bytes, on all connections
}

// admitCall is asked before anything is made for a call.
func admitCall(ctx context.Context, _ *tap.Info) (context.Context, error) {
	c, ok := peerOf(ctx)
	if !ok || c.account == nil {
		return ctx, nil
	}
	if !c.counted {
		return c.account.expect(ctx), nil
	}
	if c.account.calls.Add(1) > c.account.most {
		c.account.calls.Add(-1)
		text := fmt.Sprintf("%s has %d calls to portd that are not over, which is as many as a user gets: end some", registry.UserName(c.UID), c.account.most)
		return ctx, withDetails(status.New(codes.ResourceExhausted, text), &errdetails.ErrorInfo{Domain: domain, Reason: "EXHAUSTED"}).Err()
	}
	context.AfterFunc(ctx, func() { c.account.calls.Add(-1) })
	return c.account.expect(ctx), nil
}

// refused is why the caller's connection is not served; nil where it is.
func refused(ctx context.Context) error {
	c, _ := peerOf(ctx)
	return c.refused
}
