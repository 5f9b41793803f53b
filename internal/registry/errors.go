package registry

import (
	"cmp"
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"strings"
	"time"
)

// The errors of this package, all to be matched with errors.Is.
var (
	ErrInvalid     = errors.New("invalid")       // the request makes no sense, whoever asks; *InvalidError names the field
	ErrDenied      = errors.New("denied")        // policy does not let this caller
	ErrNotFound    = errors.New("not found")     // no such reservation, lease or service
	ErrTaken       = errors.New("taken")         // somebody has the port or the name; *TakenError says who
	ErrExhausted   = errors.New("exhausted")     // nothing left to choose from, out of descriptors, or a limit of the table is reached
	ErrUnsupported = errors.New("not supported") // this kernel, this portd or this kind of endpoint cannot do it
	ErrUnavailable = errors.New("unavailable")   // not now: portd is stopping, or its store cannot be written
	ErrConflict    = errors.New("conflict")      // the thing changed meanwhile; *ConflictError says since when
	ErrCompacted   = errors.New("compacted")     // that revision is no longer kept; *CompactedError says which is
)

// An InvalidError says which field of a request is wrong. It is an ErrInvalid.
type InvalidError struct {
	Field  string // as the API calls it
	Reason string // what is wrong and what is allowed
	Code   string // a machine's word for it, "INVALID_ARGUMENT" where empty
}

func (e *InvalidError) Error() string        { return e.Field + ": " + e.Reason }
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

func invalid(field, format string, args ...any) error {
	return &InvalidError{Field: field, Reason: fmt.Sprintf(format, args...)}
}

// A TakenError says what stands in the way of an endpoint or a name: reservations of portd's own, or sockets of others.
// It is an ErrTaken.
type TakenError struct {
	Want Endpoint // what was wanted; the zero Endpoint where a name is taken
	Name string   // the name that is taken, or empty
	By   []*Reservation
	Ends map[string]Ending // of those of By that have a lease, by its id
	Kept *Former           // in quarantine for its owner; nil where it is not
	// Holders are sockets that portd does not own. All may be empty: the kernel refused, and nothing shows why.
	Holders []Holder
	Why     string // what else the Binder knows; mostly empty
	// Services that the service registry assigns the port to, whoever has it; none where Want is not one port.
	Services []string
}

func (e *TakenError) Is(target error) bool { return target == ErrTaken }

func (e *TakenError) Error() string {
	var why []string
	for _, r := range e.By {
		why = append(why, "reserved by "+r.describe()+e.standing(r))
	}
	if e.Kept != nil {
		why = append(why, fmt.Sprintf("it is kept until %s for who had it, %s", e.Kept.Until.UTC().Format(time.RFC3339), e.Kept.Reservation.describe()))
	}
	for i, h := range e.Holders {
		if i == 3 {
			why = append(why, fmt.Sprintf("and %d more sockets", len(e.Holders)-i))
			break
		}
		why = append(why, h.String())
	}
	if e.Why != "" {
		why = append(why, e.Why)
	}
	if len(why) == 0 {
		why = append(why, "the kernel refuses it and shows no socket that has it")
	}
	if e.Name != "" {
		return fmt.Sprintf("the name %q is taken: %s", e.Name, strings.Join(why, "; "))
	}
	if len(e.Services) > 0 {
		why = append(why, "assigned to "+strings.Join(e.Services, ", ")+" in the service registry")
	}
	return fmt.Sprintf("%v is taken: %s", e.Want, strings.Join(why, "; "))
}

// A ClashError says which services have the ports or the name of an entry that was to be the host's own. It is an
// ErrTaken; an entry that is to override them is not refused for them.
type ClashError struct {
	Entry   string   // "myapp 443/tcp"
	Clashes []string // sentences: "443/tcp is https (IANA)"
}

func (e *ClashError) Is(target error) bool { return target == ErrTaken }
func (e *ClashError) Error() string {
	return fmt.Sprintf("%s clashes: %s; with override it wins", e.Entry, strings.Join(e.Clashes, "; "))
}

// A DeniedError says which rule denies what. It is an ErrDenied.
type DeniedError struct {
	Caller Principal
	Act    string // "reserve tcp/80"
	Rule   string // "ports below 1024 are for root and portd's own user"
}

func (e *DeniedError) Is(target error) bool { return target == ErrDenied }
func (e *DeniedError) Error() string {
	return fmt.Sprintf("%v may not %s: %s", e.Caller, e.Act, e.Rule)
}

// A ConflictError says that a reservation is no longer what the caller expects. It is an ErrConflict.
type ConflictError struct {
	Reservation *Reservation // as it is now
	Expected    Revision
}

func (e *ConflictError) Is(target error) bool { return target == ErrConflict }
func (e *ConflictError) Error() string {
	r := e.Reservation
	return fmt.Sprintf("%s (%s) is at revision %d, not %d: look at it again, and repeat the change with its revision if it still is what you want",
		cmp.Or(r.Name, r.ID), r.Endpoints(), r.Revision, e.Expected)
}

// A CompactedError says from which revision on events are kept. It is an ErrCompacted.
type CompactedError struct{ Wanted, Oldest Revision }

func (e *CompactedError) Is(target error) bool { return target == ErrCompacted }
func (e *CompactedError) Error() string {
	return fmt.Sprintf("revision %d is no longer kept; the oldest is %d: list again and watch from there", e.Wanted, e.Oldest)
}

// An UnsupportedError says what cannot be done here, and why. It is an ErrUnsupported.
type UnsupportedError struct {
	What string // "sctp", "listen on udp/53"
	Why  string // "this kernel has no SCTP (protocol not supported)"
	Code string // a machine's word for it, "UNSUPPORTED" where empty
}

func (e *UnsupportedError) Is(target error) bool { return target == ErrUnsupported }
func (e *UnsupportedError) Error() string        { return e.What + ": " + e.Why }

// UserName is "user www-data" for a uid that has a name here, and "uid 4711" for one that has not.
func UserName(uid uint32) string {
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		return "user " + u.Username
	}
	return fmt.Sprintf("uid %d", uid)
}

// failed is an error of one of the kinds above with a sentence of its own.
func failed(kind error, format string, args ...any) error {
	return &kindError{kind, fmt.Sprintf(format, args...)}
}

type kindError struct {
	kind error
	text string
}

func (e *kindError) Error() string        { return e.text }
func (e *kindError) Is(target error) bool { return target == e.kind }
