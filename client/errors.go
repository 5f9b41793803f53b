package client

import (
	"context"
	"errors"
	"io"
	"slices"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/portd/portd/proto/portd/v1"
)

// The errors of this package, all to be matched with errors.Is. A call whose context ends is context.Canceled or
// context.DeadlineExceeded as well.
var (
	ErrNoDaemon     = errors.New("no portd")                // nobody answers at the control socket
	ErrNoAnswer     = errors.New("no answer")               // an ErrNoDaemon too: somebody has the socket, and says nothing
	ErrUntrusted    = errors.New("not trusted")             // what answers there is neither root's nor one's own
	ErrInvalid      = errors.New("invalid")                 // the request makes no sense, whoever asks
	ErrDenied       = errors.New("denied")                  // policy does not let you
	ErrNotFound     = errors.New("not found")               // no such reservation, lease or service
	ErrTaken        = errors.New("taken")                   // somebody has the port or the name: Error.Conflict says who
	ErrExhausted    = errors.New("exhausted")               // nothing left to choose from, or portd is out of descriptors
	ErrUnsupported  = errors.New("not supported")           // this kernel, this portd or this kind of endpoint cannot do it
	ErrUnavailable  = errors.New("unavailable")             // not now; ErrNoDaemon after Dial is one of these
	ErrConflict     = errors.New("conflict")                // the thing changed meanwhile
	ErrCompacted    = errors.New("compacted")               // that revision is no longer kept: list again
	ErrStoreChanged = errors.New("the store has changed")   // revisions of before mean nothing now: list again
	ErrInternal     = errors.New("internal error of portd") // its log says more
)

// An Error is portd's answer that it did not do what it was asked for.
type Error struct {
	// Reason is a word for programs: RESERVED, IN_USE, NAME_TAKEN, POLICY_DENIED, REQUEST_ID_REUSED, … Empty where the answer
	// is not portd's own.
	Reason string
	// Metadata are the facts that go with the reason, such as field, rule, owner, pid. With ErrNoAnswer: pid, and state (stopped), where
	// they are known; with ErrUntrusted: uid.
	Metadata map[string]string
	// Conflict says what stands in the way of a port or name that is taken; else it is nil.
	Conflict *pb.PortConflict

	text   string
	status *status.Status
	is     []error
}

// Error is portd's own sentence.
func (e *Error) Error() string { return e.text }

// Is matches the errors of this package.
func (e *Error) Is(target error) bool { return slices.Contains(e.is, target) }

// GRPCStatus is the answer as gRPC has it, with all its details.
func (e *Error) GRPCStatus() *status.Status { return e.status }

var meaning = map[codes.Code]error{
	codes.InvalidArgument:    ErrInvalid,
	codes.PermissionDenied:   ErrDenied,
	codes.NotFound:           ErrNotFound,
	codes.AlreadyExists:      ErrTaken,
	codes.ResourceExhausted:  ErrExhausted,
	codes.FailedPrecondition: ErrUnsupported,
	codes.Unimplemented:      ErrUnsupported, // a portd that is older than this client
	codes.Unavailable:        ErrUnavailable,
	codes.Aborted:            ErrConflict,
	codes.OutOfRange:         ErrCompacted,
	codes.Internal:           ErrInternal,
	codes.Canceled:           context.Canceled,
	codes.DeadlineExceeded:   context.DeadlineExceeded,
}

// explain makes an *Error of what gRPC returns.
func (l *line) explain(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	st, ok := status.FromError(err)
	if !ok && errors.Is(err, io.EOF) {
		// The last of several attempts was answered before it was sent. gRPC does not tell with what, but there would have
		// been no second attempt had it not been this.
		st, ok = status.New(codes.Unavailable, err.Error()), true
	}
	if !ok {
		return err
	}
	e := &Error{text: st.Message(), status: st}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			e.Reason, e.Metadata = d.GetReason(), d.GetMetadata()
		case *pb.PortConflict:
			e.Conflict = d
		}
	}
	if is := meaning[st.Code()]; is != nil {
		e.is = append(e.is, is)
	}
	switch {
	case e.Reason == "STORE_CHANGED":
		e.is = []error{ErrStoreChanged}
	case st.Code() == codes.Unimplemented && e.Reason == "": // a portd that does not say so itself
		e.text = "this portd is older than the program that asks: " + st.Message()
	case st.Code() == codes.Unavailable && e.Reason == "": // portd gives a reason for all that it says
		return l.gone(e)
	}
	return e
}
