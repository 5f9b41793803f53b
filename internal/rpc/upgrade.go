package rpc

import (
	"context"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// Upgraded says what became of an upgrade that succeeded.
type Upgraded struct {
	OldVersion, NewVersion string
	OldPID, NewPID         int
	Binary                 string
	Pause, Frozen, Took    time.Duration
}

// An UpgradeError says that the portd from before goes on, and why. It is a registry.ErrUnsupported.
type UpgradeError struct {
	Step   string // at which it failed: see docs/ARCHITECTURE.md
	Why    string
	Binary string // of the new one
}

// troubles are the steps as whoever upgrades would call what went wrong at them.
var troubles = map[string]string{
	"hello":        "it does not start: ",
	"frozen":       "changes cannot wait for it: ",
	"closed-store": "it cannot be given what is recorded: ",
	"given":        "it cannot be given what is open: ",
	"prepared":     "it does not get ready: ",
	"suspended":    "connections cannot wait for it: ",
	"yours":        "it could not begin: ",
	"good":         "it was ready and has not begun: ",
}

func (e *UpgradeError) Error() string {
	return "the new portd does not take over, this one goes on: " + troubles[e.Step] + e.Why
}
func (e *UpgradeError) Is(target error) bool { return target == registry.ErrUnsupported }

type upgrades struct {
	pb.UnimplementedUpgradeServiceServer
	reg     *registry.Registry
	upgrade func(ctx context.Context, binary string) (Upgraded, error)
}

// upgradeMethod is the call that lasts until there is nobody left to be asked.
const upgradeMethod = pb.UpgradeService_Upgrade_FullMethodName

func (s *upgrades) Upgrade(ctx context.Context, req *pb.UpgradeRequest) (*pb.UpgradeResponse, error) {
	if err := s.reg.Policy().Administer(callerOf(ctx), "upgrade portd"); err != nil {
		return nil, err
	}
	if req.GetBinary() != "" && !filepath.IsAbs(req.GetBinary()) {
		return nil, invalid("binary", "must be an absolute path")
	}
	if s.upgrade == nil {
		return nil, &registry.UnsupportedError{What: "upgrade", Why: "this portd is a part of another program, which starts it, or serves what is whole of its state (--read-only): start the other one in its place", Code: "UNSUPPORTED"}
	}
	// It goes on though the caller may not: half an upgrade is none.
	got, err := s.upgrade(context.WithoutCancel(ctx), req.GetBinary())
	if err != nil {
		return nil, err
	}
	return &pb.UpgradeResponse{
		OldVersion: got.OldVersion, NewVersion: got.NewVersion, OldPid: int32(got.OldPID), NewPid: int32(got.NewPID), Binary: got.Binary,
		Pause: durationpb.New(got.Pause), Frozen: durationpb.New(got.Frozen), Took: durationpb.New(got.Took),
	}, nil
}
