package rpc_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	pb "github.com/portd/portd/proto/portd/v1"
)

// Over REST as over gRPC: only what the mask names changes, an empty request changes nothing, and options alone replace all.
func TestListenByREST(t *testing.T) {
	h := start(t, nil)
	rest, conn := h.rest(t), h.grpc(t)
	reserve(t, conn, "web")
	const path = "/v1/reservations/web:listen"
	for _, step := range []struct{ body, want string }{
		{`{}`, `{"noDelay":true,"keepAlive":true}`},
		{
			`{"options": {"backlog": 64, "keepAliveIdle": "60s", "userTimeout": "2.500s", "noDelay": false}}`,
			`{"backlog":64,"noDelay":false,"keepAlive":true,"keepAliveIdle":"60s","userTimeout":"2.500s"}`,
		},
		{`{}`, `{"backlog":64,"noDelay":false,"keepAlive":true,"keepAliveIdle":"60s","userTimeout":"2.500s"}`},
		{
			`{"options": {"backlog": 9, "mark": 7}, "updateMask": "backlog,keepAliveIdle,noDelay"}`,
			`{"backlog":9,"noDelay":true,"keepAlive":true,"userTimeout":"2.500s"}`,
		},
		{`{"options": {"sendBuffer": 50000}}`, `{"noDelay":true,"keepAlive":true,"sendBuffer":50000}`},
		{`{"options": {}}`, `{"noDelay":true,"keepAlive":true}`},
	} {
		answer := &pb.ListenResponse{}
		if err := rest.call(t.Context(), http.MethodPost, path, step.body, answer); err != nil {
			t.Fatalf("%s: %v", step.body, err)
		}
		got := answer.GetReservation().GetAssigned()[0].GetListenOptions()
		got.Handoff = nil
		want := &pb.ListenOptions{}
		if err := protojson.Unmarshal([]byte(step.want), want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(protojson.Format(want), protojson.Format(got)); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", step.body, diff)
		}
	}
	for body, says := range map[string]string{
		`{"options": {"keepAliveIdle": "1.5s"}}`:                     "options.keep_alive_idle: 1.5s is not allowed; allowed are 1s to 32767s",
		`{"options": {"keepAliveIdle": "-1s"}}`:                      "options.keep_alive_idle: -1s is not a length of time",
		`{"options": {"sendBuffer": 4294967295}}`:                    "options.send_buffer: 2147483647 is not allowed",
		`{"options": {}, "updateMask": "backlog,backlock"}`:          `update_mask: "backlock" is not an option of a listener`,
		`{"options": {"userTimeout": "1s"}, "updateMask": "mark.x"}`: `"mark.x" is not an option`,
	} {
		err := rest.call(t.Context(), http.MethodPost, path, body, &pb.ListenResponse{})
		if st := status.Convert(err); st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), says) {
			t.Errorf("%s: %v, want InvalidArgument: …%s…", body, err, says)
		}
	}
}
