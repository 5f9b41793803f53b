package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/rpc"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
)

func TestStatus(t *testing.T) {
	web := registry.Endpoint{Netns: registry.HostNetns, Proto: registry.TCP, Addr: registry.AnyAddr, First: 80, Last: 80}
	nginx := web
	nginx.Addr = netip.IPv4Unspecified()
	other := &registry.Reservation{ID: "rsv_1", Name: "web", Owner: "uid:7", Assigned: []registry.Assigned{{Endpoint: web}, {Endpoint: web.At(81)}}}
	tests := []struct {
		err    error
		code   codes.Code
		reason string
		facts  map[string]string
	}{
		{&registry.InvalidError{Field: "ports", Reason: "70000 is not a port"}, codes.InvalidArgument, "INVALID_ARGUMENT", map[string]string{"field": "ports"}},
		{&registry.InvalidError{Field: "request_id", Code: "REQUEST_ID_REUSED"}, codes.InvalidArgument, "REQUEST_ID_REUSED", map[string]string{"field": "request_id"}},
		{&registry.DeniedError{Caller: "uid:7", Act: "reserve tcp/80", Rule: "no"}, codes.PermissionDenied, "POLICY_DENIED", map[string]string{"caller": "uid:7", "act": "reserve tcp/80", "rule": "no"}},
		{fmt.Errorf("release: %w", registry.ErrNotFound), codes.NotFound, "NOT_FOUND", nil},
		{&registry.TakenError{Want: web, By: []*registry.Reservation{other}}, codes.AlreadyExists, "RESERVED", map[string]string{"endpoint": "tcp/80", "reservation": "rsv_1", "owner": "uid:7"}},
		{&registry.TakenError{Name: "web", By: []*registry.Reservation{other}}, codes.AlreadyExists, "NAME_TAKEN", map[string]string{"name": "web", "reservation": "rsv_1", "owner": "uid:7"}},
		{&registry.TakenError{Want: web, Holders: []registry.Holder{{Endpoint: nginx, State: registry.SocketListening, UID: 33, Processes: []registry.Process{{PID: 812, Command: "nginx"}}}}}, codes.AlreadyExists, "IN_USE", map[string]string{"endpoint": "tcp/80", "address": "tcp4/80", "uid": "33", "pid": "812", "command": "nginx"}},
		{&registry.TakenError{Want: web, Holders: []registry.Holder{{Endpoint: nginx, State: registry.SocketLeftover}}}, codes.AlreadyExists, "IN_USE", map[string]string{"endpoint": "tcp/80", "address": "tcp4/80"}},
		{&registry.TakenError{Want: web, Kept: &registry.Former{Reservation: other, Until: time.Unix(0, 0)}}, codes.AlreadyExists, "QUARANTINED", map[string]string{"endpoint": "tcp/80", "owner": "uid:7", "until": "1970-01-01T00:00:00Z"}},
		{registry.ErrTaken, codes.AlreadyExists, "TAKEN", nil},
		{&registry.ClashError{Entry: "x 443/tcp", Clashes: []string{"a", "b"}}, codes.AlreadyExists, "SERVICE_CLASH", map[string]string{"service": "x 443/tcp", "clashes": "a\nb"}},
		{&services.NoServiceError{Name: "htpps", Near: []string{"https", "http"}}, codes.NotFound, "NOT_FOUND", map[string]string{"name": "htpps", "near": "https,http"}},
		{&services.NoServiceError{Name: "q"}, codes.NotFound, "NOT_FOUND", map[string]string{"name": "q"}},
		{&registry.InvalidError{Field: "data", Code: "IMPLAUSIBLE"}, codes.InvalidArgument, "IMPLAUSIBLE", map[string]string{"field": "data"}},
		{registry.ErrExhausted, codes.ResourceExhausted, "EXHAUSTED", nil},
		{&registry.ExhaustedError{Count: 2, Pool: "ci", Quarantined: 9, Reserved: 7, InUse: 6, Ephemeral: 5, NodePorts: 4, Assigned: 3, Kept: 2, Free: 10, Longest: 1}, codes.ResourceExhausted, "EXHAUSTED", map[string]string{
			"pool": "ci", "quarantined": "9", "reserved": "7", "in_use": "6", "ephemeral": "5", "node_ports": "4", "assigned": "3", "kept": "2", "free": "10", "longest": "1",
		}},
		{&registry.UnsupportedError{What: "sctp", Why: "this kernel has no SCTP"}, codes.FailedPrecondition, "UNSUPPORTED", map[string]string{"what": "sctp"}},
		{&registry.UnsupportedError{What: "watch", Code: "STORE_CHANGED"}, codes.FailedPrecondition, "STORE_CHANGED", map[string]string{"what": "watch"}},
		{fmt.Errorf("write to the store: %w", registry.ErrUnavailable), codes.Unavailable, "UNAVAILABLE", nil},
		{registry.ErrConflict, codes.Aborted, "CONFLICT", nil},
		{&registry.CompactedError{Wanted: 3, Oldest: 17}, codes.OutOfRange, "COMPACTED", map[string]string{"oldest_revision": "17"}},
		{fmt.Errorf("bind: %w", context.Canceled), codes.Canceled, "", nil},
		{context.DeadlineExceeded, codes.DeadlineExceeded, "", nil},
	}
	var log lockedBuffer
	for _, tt := range tests {
		st := status.Convert(rpc.StatusOf(tt.err, slog.New(slog.NewTextHandler(&log, nil))))
		if st.Code() != tt.code || tt.reason != "" && st.Message() != tt.err.Error() {
			t.Errorf("%v: %v, want %v", tt.err, st, tt.code)
		}
		var reason string
		var facts map[string]string
		for _, d := range st.Details() {
			switch d := d.(type) {
			case *errdetails.ErrorInfo:
				reason, facts = d.GetReason(), d.GetMetadata()
				if d.GetDomain() != "portd" {
					t.Errorf("%v: the domain is %q", tt.err, d.GetDomain())
				}
			case *pb.PortConflict:
				if len(d.GetUses()) == 0 && reason != "QUARANTINED" {
					t.Errorf("%v: a conflict with nobody", tt.err)
				}
			}
		}
		if reason != tt.reason {
			t.Errorf("%v: the reason is %q, want %q", tt.err, reason, tt.reason)
		}
		if diff := cmp.Diff(tt.facts, facts); diff != "" {
			t.Errorf("%v:\n%s", tt.err, diff)
		}
	}
	if log.String() != "" {
		t.Errorf("the log has what callers were told: %s", log.String())
	}
}

// What nobody foresaw is the operator's to read, and no caller's.
func TestInternalError(t *testing.T) {
	var log lockedBuffer
	err := rpc.StatusOf(errors.New("open /var/lib/secret: no such file"), slog.New(slog.NewTextHandler(&log, nil)))
	if st := status.Convert(err); st.Code() != codes.Internal || st.Message() != "internal error" || len(st.Details()) > 0 {
		t.Errorf("the caller is told %v", st.Proto())
	}
	for _, want := range []string{"/var/lib/secret", "/portd.v1.Test/Fail"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %s: %s", want, log.String())
		}
	}
}
