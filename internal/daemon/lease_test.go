package daemon_test

import (
	"context"
	"os/exec"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

func ttl(d time.Duration) *pb.LeaseSpec {
	return &pb.LeaseSpec{Kind: &pb.LeaseSpec_Ttl{Ttl: durationpb.New(d)}}
}

func renew(t *testing.T, c *client.Client, lease string) *pb.Lease {
	t.Helper()
	answer, err := c.Leases.RenewLease(t.Context(), &pb.RenewLeaseRequest{LeaseId: lease})
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetLease()
}

// Of two reservations with one time to live the one that is renewed stays, also across a restart, after which the other
// has its whole time again.
func TestTTL(t *testing.T) {
	d, c := start(t)
	const whole = time.Second
	var kept string
	for name, endpoint := range map[string]string{"kept": "tcp/8080", "dropped": "tcp/8081"} {
		answer, err := c.Reservations.Reserve(t.Context(), &pb.ReserveRequest{Name: name, Spec: spec(t, endpoint), NewLease: ttl(whole)})
		if err != nil {
			t.Fatal(err)
		}
		if until := time.Until(answer.GetReservation().GetExpireTime().AsTime()); until > whole || until < whole/2 {
			t.Errorf("it ends in %v, want %v", until, whole)
		}
		if name == "kept" {
			kept = answer.GetReservation().GetLeaseId()
		}
	}
	d.Restart(t)
	up := time.Now()
	wantHeld(t, 8080, 8081)
	ctx, stop := context.WithCancel(t.Context())
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		for ctx.Err() == nil {
			_, _ = c.Leases.RenewLease(ctx, &pb.RenewLeaseRequest{LeaseId: kept})
			time.Sleep(whole / 20)
		}
	}()
	w := newWatch(t, c, head(t, c)+1)
	expired(t, w, "dropped")
	if took := time.Since(up); took < whole*8/10 || took > 3*whole {
		t.Errorf("it ended %v after the restart, want %v", took, whole)
	}
	wantHeld(t, 8080)
	stop()
	<-renewed
	before := get(t, c, "kept").GetExpireTime().AsTime()
	if after := renew(t, c, kept).GetExpireTime().AsTime(); !after.After(before) {
		t.Errorf("renewed until %v, and before that until %v", after, before)
	}
	expired(t, w, "kept")
	reserve(t, c, "kept", "tcp/8080")
	_, err := c.Leases.RenewLease(t.Context(), &pb.RenewLeaseRequest{LeaseId: kept})
	if answer(err) != "NotFound NOT_FOUND" {
		t.Errorf("renewing what is over: %v", err)
	}
}

func TestLeaseRefused(t *testing.T) {
	_, c := start(t)
	for name, req := range map[string]*pb.CreateLeaseRequest{
		"nothing":   {},
		"no kind":   {Spec: &pb.LeaseSpec{}},
		"too short": {Spec: ttl(time.Second - 1)},
		"too long":  {Spec: ttl(30*24*time.Hour + 1)},
		"a session": {Spec: &pb.LeaseSpec{Kind: &pb.LeaseSpec_Session{}}},
	} {
		if _, err := c.Leases.CreateLease(t.Context(), req); answer(err) != "InvalidArgument INVALID_ARGUMENT" {
			t.Errorf("%s: %v", name, err)
		}
	}
	s, _ := session(t, c, &pb.OpenSessionRequest{})
	_, err := c.Leases.RenewLease(t.Context(), &pb.RenewLeaseRequest{LeaseId: s.GetLease().GetId()})
	if answer(err) != "FailedPrecondition LEASE_KIND" {
		t.Errorf("renewing a session: %v", err)
	}
}

// A lease by a process ends with it, and not with portd.
func TestProcessLease(t *testing.T) {
	d, c := start(t)
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	req := &pb.ReserveRequest{
		Name: "job", Spec: spec(t, "tcp/8080"),
		NewLease: &pb.LeaseSpec{Kind: &pb.LeaseSpec_Process{Process: &pb.ProcessLease{Pid: int32(cmd.Process.Pid)}}},
	}
	if _, err := c.Reservations.Reserve(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	d.Restart(t)
	wantHeld(t, 8080)
	w := newWatch(t, c, head(t, c)+1)
	end()
	expired(t, w, "job")
	_, err := c.Reservations.Reserve(t.Context(), req)
	if answer(err) != "NotFound NOT_FOUND" {
		t.Errorf("by a process that has ended: %v", err)
	}
	reserve(t, c, "job", "tcp/8080")
}
