package rpc_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/portd/portd/proto/portd/v1"
)

// The host's own entries win, are watched, and are gone when they are removed; what clashes is refused by name.
func TestOwnServices(t *testing.T) {
	h := start(t, nil)
	conn := h.grpc(t)
	services := pb.NewServiceRegistryServiceClient(conn)
	watch, err := pb.NewReservationServiceClient(conn).WatchReservations(t.Context(), &pb.WatchReservationsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	me := h.me(t)
	page, err := services.ListServices(t.Context(), &pb.ListServicesRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	found, err := services.SearchServices(t.Context(), &pb.SearchServicesRequest{Query: "mail", PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}

	added, err := services.AddServices(t.Context(), &pb.AddServicesRequest{Services: []*pb.ServiceEntry{myapp()}})
	if err != nil {
		t.Fatal(err)
	}
	e := added.GetServices()[0]
	if line(e) != "myapp 8123/TCP of "+me || e.GetChangeTime() == nil || len(added.GetOverridden()) > 0 {
		t.Errorf("added %v", added)
	}
	for what, err := range map[string]error{
		"list":   second(services.ListServices(t.Context(), &pb.ListServicesRequest{PageSize: 1, PageToken: page.GetNextPageToken()})),
		"search": second(services.SearchServices(t.Context(), &pb.SearchServicesRequest{Query: "mail", PageSize: 1, PageToken: found.GetNextPageToken()})),
	} {
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "start again") {
			t.Errorf("%s goes on after a change: %v", what, err)
		}
	}
	clash := myapp()
	clash.Ports = &pb.PortRange{First: 443}
	all := []*pb.ServiceEntry{{Name: "innocent", Protocol: 1, Ports: &pb.PortRange{First: 8124}}, clash}
	_, err = services.AddServices(t.Context(), &pb.AddServicesRequest{Services: all})
	if status.Code(err) != codes.AlreadyExists || info(err).GetReason() != "SERVICE_CLASH" || !strings.Contains(info(err).GetMetadata()["clashes"], "https") {
		t.Errorf("a clash: %v, %v", err, info(err))
	}
	if own := h.own(t); len(own) != 1 {
		t.Errorf("after a refusal the host has %v", own)
	}
	over, err := services.AddServices(t.Context(), &pb.AddServicesRequest{Services: all, Override: true})
	if err != nil || len(over.GetOverridden()) == 0 {
		t.Errorf("override: %v (%v)", over, err)
	}
	l, err := services.LookupServices(t.Context(), &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Port{Port: 443}, Protocol: 1})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"myapp 443/TCP of " + me, "https 443/TCP"}, lines(l.GetLookup().GetEntries())); diff != "" {
		t.Error(diff)
	}
	_, err = services.EditServices(t.Context(), &pb.EditServicesRequest{
		Name: "myapp", UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"description", "owner"}},
	})
	if i := info(err); i.GetMetadata()["field"] != "update_mask.paths[1]" || !strings.Contains(err.Error(), `"owner" cannot be edited; allowed are name, ports`) {
		t.Errorf("an unknown field: %v", err)
	}
	edited, err := services.EditServices(t.Context(), &pb.EditServicesRequest{
		Name: "myapp", Ports: &pb.PortRange{First: 443},
		Service:    &pb.ServiceEntry{Ports: &pb.PortRange{First: 8200, Last: 8201}, Description: "not taken", Notes: "moved"},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"ports", "notes"}}, Override: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if e := edited.GetServices(); len(e) != 1 || line(e[0]) != "myapp 8200-8201/TCP of "+me || e[0].GetDescription() != "what we make" || e[0].GetNotes() != "moved" {
		t.Errorf("edited %v", edited)
	}
	removed, err := services.RemoveServices(t.Context(), &pb.RemoveServicesRequest{Name: "MYAPP"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"myapp 8123/TCP of " + me, "myapp 8200-8201/TCP of " + me}, lines(removed.GetServices())); diff != "" {
		t.Error(diff)
	}
	_, err = services.RemoveServices(t.Context(), &pb.RemoveServicesRequest{Name: "myapp"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("removed twice: %v", err)
	}
	var events []string
	for range 4 {
		change, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range change.GetEvents() {
			events = append(events, strings.TrimPrefix(e.GetType().String(), "EVENT_TYPE_")+" "+line(e.GetService()))
		}
	}
	want := []string{
		"SERVICE_ADDED myapp 8123/TCP of " + me, "SERVICE_ADDED innocent 8124/TCP of " + me, "SERVICE_ADDED myapp 443/TCP of " + me,
		"SERVICE_EDITED myapp 8200-8201/TCP of " + me, "SERVICE_REMOVED myapp 8123/TCP of " + me, "SERVICE_REMOVED myapp 8200-8201/TCP of " + me,
	}
	if diff := cmp.Diff(want, events); diff != "" {
		t.Error(diff)
	}
}

func second[T any](_ T, err error) error { return err }
