package rpc

import (
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// unknown answers the calls that this portd does not have: most likely they are of a later one, whose portctl or client asks.
func unknown(version string) grpc.StreamHandler {
	return func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		return refusal(0, codes.Unimplemented, "NO_SUCH_METHOD",
			fmt.Sprintf("portd %s does not have the call %.100q: it is older than the program that asks", version, method))
	}
}
