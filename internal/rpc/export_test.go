package rpc

import (
	"context"
	"log/slog"
)

// For the tests of what stands between proto and domain.
var (
	ToEndpointSpec   = toEndpointSpec
	FromEndpointSpec = fromEndpointSpec
	ToListenOptions  = toListenOptions
	ToWatch          = toWatch
)

// StatusOf is what a caller is told of err, whom the log tells the rest.
func StatusOf(err error, log *slog.Logger) error {
	return (&Server{log: log}).status(context.Background(), "/portd.v1.Test/Fail", err)
}
