package rpc

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/services"
	"github.com/portd/portd/internal/shortage"
	pb "github.com/portd/portd/proto/portd/v1"
)

// codeOf is what errors mean to a caller: a code for programs, and ErrorInfo's reason where the error itself has none.
var codeOf = []struct {
	is     error
	code   codes.Code
	reason string
}{
	{registry.ErrInvalid, codes.InvalidArgument, "INVALID_ARGUMENT"},
	{registry.ErrDenied, codes.PermissionDenied, "POLICY_DENIED"},
	{registry.ErrNotFound, codes.NotFound, "NOT_FOUND"},
	{registry.ErrTaken, codes.AlreadyExists, "TAKEN"},
	{registry.ErrExhausted, codes.ResourceExhausted, "EXHAUSTED"},
	{registry.ErrUnsupported, codes.FailedPrecondition, "UNSUPPORTED"},
	{registry.ErrUnavailable, codes.Unavailable, "UNAVAILABLE"},
	{registry.ErrConflict, codes.Aborted, "CONFLICT"},
	{registry.ErrCompacted, codes.OutOfRange, "COMPACTED"},
}

// domain is ErrorInfo's: reasons are portd's own words.
const domain = "portd"

var errInternal = status.Error(codes.Internal, "internal error")

// status is what the caller of method gets for err. What the table does not have is for the operator alone.
func (s *Server) status(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	for _, k := range codeOf {
		if errors.Is(err, k.is) {
			var me registry.Principal
			if c, ok := findCaller(ctx); ok {
				me = c.Principal()
			}
			return withDetails(status.New(k.code, sentence(err)), explain(err, k.reason, me)...).Err()
		}
	}
	var has interface{ GRPCStatus() *status.Status } // of gRPC's own: a send to a caller who has gone
	switch {
	case errors.As(err, &has):
		return has.GRPCStatus().Err()
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	if shortage.Of(err) != nil {
		return withDetails(status.New(codes.ResourceExhausted, sentence(err)), &errdetails.ErrorInfo{Domain: domain, Reason: "EXHAUSTED"}).Err()
	}
	s.log.Error("a call failed", "method", method, "err", err)
	return errInternal
}

// sentence is what err says, and which limit it is about where it does not say that itself.
func sentence(err error) string {
	text := err.Error()
	if why := shortage.Of(err); why != nil && !strings.Contains(text, why.Error()) {
		text += ": " + why.Error()
	}
	return text
}

func withDetails(st *status.Status, details ...protoadapt.MessageV1) *status.Status {
	detailed, err := st.WithDetails(details...)
	if err != nil { // only for a status that is OK, or a message that cannot be serialized
		return st
	}
	return detailed
}

// explain is err in google.rpc's words (AIP-193): ErrorInfo for all, and more where there is more to say.
func explain(err error, reason string, me registry.Principal) []protoadapt.MessageV1 {
	info := &errdetails.ErrorInfo{Domain: domain, Reason: reason, Metadata: map[string]string{}}
	details := []protoadapt.MessageV1{info}
	var (
		invalid     *registry.InvalidError
		taken       *registry.TakenError
		denied      *registry.DeniedError
		unsupported *registry.UnsupportedError
		compacted   *registry.CompactedError
		clash       *registry.ClashError
		conflict    *registry.ConflictError
		exhausted   *registry.ExhaustedError
		noService   *services.NoServiceError
		absent      *registry.NotListeningError
		upgrade     *UpgradeError
	)
	switch {
	case errors.Is(err, registry.ErrHandedOver):
		info.Reason = "HANDED_OVER"
	case errors.As(err, &invalid):
		info.Reason = or(invalid.Code, reason)
		info.Metadata["field"] = invalid.Field
		details = append(details, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: invalid.Field, Description: invalid.Reason, Reason: info.Reason},
		}})
	case errors.As(err, &taken):
		info.Reason = takenReason(taken)
		info.Metadata = takenMetadata(taken)
		details = append(details, fromTaken(taken, me))
	case errors.As(err, &clash):
		info.Reason = "SERVICE_CLASH"
		info.Metadata["service"], info.Metadata["clashes"] = clash.Entry, strings.Join(clash.Clashes, "\n")
	case errors.As(err, &exhausted):
		for what, n := range map[string]int{
			"reserved": exhausted.Reserved, "in_use": exhausted.InUse, "quarantined": exhausted.Quarantined, "ephemeral": exhausted.Ephemeral, "node_ports": exhausted.NodePorts,
			"assigned": exhausted.Assigned, "kept": exhausted.Kept, "free": exhausted.Free, "longest": exhausted.Longest,
		} {
			info.Metadata[what] = strconv.Itoa(n)
		}
		if exhausted.Pool != "" {
			info.Metadata["pool"] = exhausted.Pool
		}
	case errors.As(err, &upgrade):
		info.Reason = "UPGRADE_FAILED"
		info.Metadata["step"], info.Metadata["binary"] = upgrade.Step, upgrade.Binary
	case errors.As(err, &absent):
		info.Reason = "NOT_LISTENING"
		details = append(details, fromTaken(&registry.TakenError{Want: absent.Want, Holders: absent.Holders}, me))
	case errors.As(err, &noService):
		info.Metadata["name"] = fmt.Sprintf("%.80s", noService.Name) // details go in a header, of which many clients take 8 kB
		if len(noService.Near) > 0 {
			info.Metadata["near"] = strings.Join(noService.Near, ",")
		}
	case errors.As(err, &denied):
		info.Metadata = map[string]string{"caller": string(denied.Caller), "act": denied.Act, "rule": denied.Rule}
	case errors.As(err, &unsupported):
		info.Reason = or(unsupported.Code, reason)
		info.Metadata["what"] = unsupported.What
		details = append(details, &errdetails.PreconditionFailure{Violations: []*errdetails.PreconditionFailure_Violation{
			{Type: info.Reason, Subject: unsupported.What, Description: unsupported.Why},
		}})
	case errors.As(err, &conflict):
		info.Metadata["reservation"] = conflict.Reservation.ID
		info.Metadata["expected_revision"] = strconv.FormatInt(int64(conflict.Expected), 10)
		info.Metadata["revision"] = strconv.FormatInt(int64(conflict.Reservation.Revision), 10)
	case errors.As(err, &compacted):
		info.Metadata["oldest_revision"] = strconv.FormatInt(int64(compacted.Oldest), 10)
	}
	return details
}

func takenReason(e *registry.TakenError) string {
	switch {
	case e.Name != "":
		return "NAME_TAKEN"
	case len(e.By) > 0:
		return "RESERVED"
	case e.Kept != nil:
		return "QUARANTINED"
	}
	return "IN_USE"
}

// takenMetadata is the first thing in the way as strings, for those who do not read PortConflict.
func takenMetadata(e *registry.TakenError) map[string]string {
	m := map[string]string{}
	if e.Name != "" {
		m["name"] = e.Name
	} else {
		m["endpoint"] = e.Want.String()
	}
	switch {
	case len(e.By) > 0:
		m["reservation"], m["owner"] = e.By[0].ID, string(e.By[0].Owner)
		if ends := e.Ends[e.By[0].Lease]; ends.Lease != "" {
			m["lease"] = ends.String()
		}
	case e.Kept != nil:
		m["owner"], m["until"] = string(e.Kept.Reservation.Owner), e.Kept.Until.UTC().Format(time.RFC3339)
	case len(e.Holders) > 0:
		h := e.Holders[0]
		m["address"] = h.Endpoint.String()
		if h.State != registry.SocketLeftover {
			m["uid"] = strconv.FormatUint(uint64(h.UID), 10)
		}
		if len(h.Processes) > 0 {
			m["pid"], m["command"] = strconv.Itoa(h.Processes[0].PID), h.Processes[0].Command
		}
	}
	return m
}

func fromTaken(e *registry.TakenError, me registry.Principal) *pb.PortConflict {
	conflict := &pb.PortConflict{Services: e.Services}
	if e.Name == "" {
		conflict.Wanted = fromEndpoint(e.Want)
	}
	for _, r := range e.By {
		for i, a := range r.Assigned {
			if e.Name != "" || a.Endpoint.Overlaps(e.Want) {
				use := fromUse(registry.Use{Reservation: r, Index: i}, me)
				conflict.Uses = append(conflict.Uses, ends(use, e.Ends[r.Lease]))
			}
		}
	}
	for _, h := range e.Holders {
		conflict.Uses = append(conflict.Uses, fromUse(registry.Use{Holders: []registry.Holder{h}}, me))
	}
	return conflict
}

// or is v, or otherwise where v is the zero value.
func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}
