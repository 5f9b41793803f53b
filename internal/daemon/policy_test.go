package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// stranger tries what it may and what it may not, and prints what it was answered. Its arguments are portd's socket and
// a reservation of somebody else.
func stranger(args []string) error {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Options{Socket: args[0]})
	if err != nil {
		return err
	}
	defer c.Close()
	theirs, r := args[1], c.Reservations
	reserve := func(name, endpoint string) error {
		ep, err := client.ParseSpec(endpoint)
		if err != nil {
			return err
		}
		_, err = r.Reserve(ctx, &pb.ReserveRequest{Name: name, Spec: &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{ep}}})
		return err
	}
	attach := func(ref string, socket bool) error {
		a, err := client.Attach(ctx, client.AttachConfig{Socket: c.HandoffPath(), Wishes: []client.Wish{{Reference: ref, Socket: socket}}})
		if err == nil {
			for _, l := range a.Listeners {
				for _, f := range l.Sockets {
					f.Close()
				}
			}
			err = a.Close()
		}
		return err
	}
	said := map[string]string{}
	for _, try := range []struct {
		what string
		err  error
	}{
		{"reserve tcp/80", reserve("", "tcp/80")},
		{"reserve their port", reserve("", "tcp/8080")},
		{"take their name", reserve("web", "tcp/8090")},
		{"release theirs", second(r.Release(ctx, &pb.ReleaseRequest{Reservation: theirs}))},
		{"release theirs by its port", second(r.Release(ctx, &pb.ReleaseRequest{Reservation: "tcp/8080"}))},
		{"listen on theirs", second(r.Listen(ctx, &pb.ListenRequest{Reservation: theirs}))},
		{"close theirs", second(r.Close(ctx, &pb.CloseRequest{Reservation: theirs}))},
		{"attach to theirs", attach(theirs, false)},
		{"take their socket", attach(theirs, true)},
		{"see theirs", second(r.GetReservation(ctx, &pb.GetReservationRequest{Reservation: theirs}))},
		{"reserve tcp/8091", reserve("mine", "tcp/8091")},
		{"listen on mine", second(r.Listen(ctx, &pb.ListenRequest{Reservation: "mine"}))},
		{"attach to mine", attach("mine", false)},
		{"take my socket", attach("mine", true)},
		{"release mine", second(r.Release(ctx, &pb.ReleaseRequest{Reservation: "mine"}))},
		{"look a service up", second(c.Services.LookupServices(ctx, &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Name{Name: "https"}}))},
		{"add a service", second(c.Services.AddServices(ctx, &pb.AddServicesRequest{Services: []*pb.ServiceEntry{
			{Name: "mine", Ports: &pb.PortRange{First: 8091}, Protocol: pb.Protocol_PROTOCOL_TCP},
		}, Override: true}))},
		{"edit a service", second(c.Services.EditServices(ctx, &pb.EditServicesRequest{
			Name: "ours", Service: &pb.ServiceEntry{Notes: "mine"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"notes"}},
		}))},
		{"remove a service", second(c.Services.RemoveServices(ctx, &pb.RemoveServicesRequest{Name: "ours"}))},
		{"import services", second(c.ImportServices(ctx, strings.NewReader("Service Name,Port Number"), nil))},
		{"undo an import", second(c.Services.UndoImport(ctx, &pb.UndoImportRequest{}))},
	} {
		said[try.what] = answer(try.err)
		if errors.Is(try.err, client.ErrUnavailable) {
			return try.err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(said)
}

func TestPolicy(t *testing.T) {
	d, c := start(t)
	web := reserve(t, c, "web", "tcp/8080")
	if _, err := c.Reservations.Listen(t.Context(), &pb.ListenRequest{Reservation: "web"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Services.AddServices(t.Context(), &pb.AddServicesRequest{Services: []*pb.ServiceEntry{
		{Name: "ours", Ports: &pb.PortRange{First: 8123}, Protocol: pb.Protocol_PROTOCOL_TCP},
	}, Override: true}); err != nil {
		t.Fatal(err)
	}
	cmd := acting("stranger", d.Socket, web.GetId())
	cmd.SysProcAttr = nstest.As(t, 65534, 65534)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var said map[string]string
	if err := json.Unmarshal(out, &said); err != nil {
		t.Fatal(err)
	}
	const denied = "PermissionDenied POLICY_DENIED"
	want := map[string]string{
		"reserve tcp/80":             denied,
		"reserve their port":         "AlreadyExists RESERVED",
		"take their name":            "AlreadyExists NAME_TAKEN",
		"release theirs":             denied,
		"release theirs by its port": denied,
		"listen on theirs":           denied,
		"close theirs":               denied,
		"attach to theirs":           "PermissionDenied",
		"take their socket":          "PermissionDenied",
		"see theirs":                 "OK",
		"reserve tcp/8091":           "OK",
		"listen on mine":             "OK",
		"attach to mine":             "OK",
		"take my socket":             "OK",
		"release mine":               "OK",
		"look a service up":          "OK",
		"add a service":              denied,
		"edit a service":             denied,
		"remove a service":           denied,
		"import services":            denied,
		"undo an import":             denied,
	}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Error(diff)
	}
	if s := get(t, c, "web").GetAssigned()[0].GetState(); s != pb.EndpointState_ENDPOINT_STATE_LISTENING {
		t.Errorf("web is %v", s)
	}
}
