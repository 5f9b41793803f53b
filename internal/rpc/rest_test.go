package rpc_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/portd/portd/proto/portd/v1"
)

func TestFixedPages(t *testing.T) {
	rest := start(t, nil).rest(t)
	tests := []struct{ path, contentType, has string }{
		{"/", "text/plain; charset=utf-8", "/openapi.json"},
		{"/openapi.json", "application/json", `"3.1`},
		{"/openapi/v2.json", "application/json", `"2.0"`},
	}
	for _, tt := range tests {
		resp, err := rest.Get("http://portd" + tt.path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != tt.contentType || !strings.Contains(string(text), tt.has) {
			t.Errorf("%s: %s, %v, without %s: %.200s", tt.path, resp.Status, resp.Header, tt.has, text)
		}
		if tt.contentType == "application/json" && !json.Valid(text) {
			t.Errorf("%s is not JSON", tt.path)
		}
	}
}

// What the gateway refuses by itself, without asking a service, is said in the same form.
func TestRefusedByGateway(t *testing.T) {
	h := start(t, nil)
	rest := h.rest(t)
	const post, reservations = http.MethodPost, "/v1/reservations"
	tests := []struct {
		name, method, path, body string
		http                     int
		code                     codes.Code
		reason, says             string
	}{
		{"no such path", "", "/v2/status", "", 404, codes.NotFound, "NO_SUCH_PATH", "there is no /v2/status here"},
		{"an endpoint in the path", "", "/v1/reservations/tcp/80", "", 404, codes.NotFound, "NO_SUCH_PATH", "reservations:find?reservation=tcp/80"},
		{"a verb of another method", "", "/v1/reservations:release", "", 405, codes.Unimplemented, "NO_SUCH_METHOD", "GET is not for"},
		{"another method", http.MethodPut, "/v1/status", "", 405, codes.Unimplemented, "NO_SUCH_METHOD", "PUT is not for /v1/status"},
		{"not JSON", post, reservations, "<xml>", 400, codes.InvalidArgument, "INVALID_ARGUMENT", "invalid character '<'"},
		{"half of it", post, reservations, `{"name": "x`, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "unexpected EOF"},
		{"a field that is not there", post, reservations, `{"nme": "x"}`, 400, codes.InvalidArgument, "INVALID_ARGUMENT", `unknown field "nme"`},
		{"a port that is no number", post, reservations, `{"spec": {"endpoints": [{"exact": {"first": -1}}]}}`, 400, codes.InvalidArgument, "INVALID_ARGUMENT", "invalid value for uint32"},
		{"an enum that is none", "", "/v1/ports:whois?port=1&protocol=tcpp", "", 400, codes.InvalidArgument, "INVALID_ARGUMENT", "tcpp"},
		{"a parameter that is not there", "", "/v1/reservations?filter.prots.first=1", "", 400, codes.InvalidArgument, "INVALID_ARGUMENT", "filter.prots.first: there is no such parameter"},
		{"a port as text", "", "/v1/services:lookup?port=http", "", 400, codes.InvalidArgument, "INVALID_ARGUMENT", "http"},
		{"two questions", "", "/v1/services:lookup?port=1&name=x", "", 400, codes.InvalidArgument, "INVALID_ARGUMENT", "query"},
		{"too much", post, reservations, `{"name": "` + strings.Repeat("x", 1<<20) + `"}`, 413, codes.ResourceExhausted, "TOO_LARGE", "at most 1048576 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			method := tt.method
			if method == "" {
				method = http.MethodGet
			}
			err := rest.call(t.Context(), method, tt.path, tt.body, &pb.ReserveResponse{})
			var he *httpError
			if !errors.As(err, &he) {
				t.Fatalf("got %v", err)
			}
			st := status.Convert(err)
			if he.code != tt.http || st.Code() != tt.code || !strings.Contains(st.Message(), tt.says) {
				t.Errorf("got %v; want %d, %v: …%s…", err, tt.http, tt.code, tt.says)
			}
			if strings.Contains(st.Message(), "\u00a0") {
				t.Errorf("%q has a no-break space", st.Message())
			}
			if len(st.Details()) != 1 || st.Details()[0].(*errdetails.ErrorInfo).GetReason() != tt.reason {
				t.Errorf("the reason is %v, want %s", st.Details(), tt.reason)
			}
		})
	}
	// None of it has done any harm.
	if err := rest.call(t.Context(), http.MethodGet, "/v1/status", "", &pb.GetStatusResponse{}); err != nil {
		t.Error(err)
	}
	if list, err := pb.NewReservationServiceClient(h.grpc(t)).ListReservations(t.Context(), &pb.ListReservationsRequest{}); err != nil || len(list.GetReservations()) > 0 {
		t.Errorf("left behind: %v (%v)", list, err)
	}
}
