package rpc_test

import (
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/portd/portd/proto/portd/v1"
)

// A call of a later portd is refused in words that say so, be it in a service that is known or not.
func TestUnknownCall(t *testing.T) {
	h := start(t, nil)
	conn := h.grpc(t)
	for _, method := range []string{"/portd.v1.ReservationService/Predict", "/portd.v1.OracleService/Predict", "/portd.v1.OracleService/" + strings.Repeat("x", 5000)} {
		err := conn.Invoke(t.Context(), method, &pb.GetStatusRequest{}, &pb.GetStatusResponse{})
		st := status.Convert(err)
		reason := ""
		for _, d := range st.Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok {
				reason = info.GetReason()
			}
		}
		if st.Code() != codes.Unimplemented || reason != "NO_SUCH_METHOD" || !strings.Contains(st.Message(), `the call "`+method[:min(len(method), 100)]) ||
			!strings.HasSuffix(st.Message(), `": it is older than the program that asks`) {
			t.Errorf("%.80s: %v", method, err)
		}
	}
	if _, err := pb.NewDaemonServiceClient(conn).GetStatus(t.Context(), &pb.GetStatusRequest{}); err != nil {
		t.Error(err)
	}
}
