package services_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
)

// of is a registry of these entries alone.
func of(t *testing.T, entries []ianadb.Entry) *registry.Services {
	t.Helper()
	blob, err := ianadb.Compile(entries, ianadb.Source{})
	if err != nil {
		t.Fatal(err)
	}
	s := services.Embedded()
	if s.IANA, err = ianadb.Open(string(blob)); err != nil {
		t.Fatal(err)
	}
	return s
}

// All ports at once are taken by a gRPC client that takes 4 MiB.
func TestAllPorts(t *testing.T) {
	s := host(t)
	all := &pb.LookupServicesRequest{Query: &pb.LookupServicesRequest_Ports{Ports: &pb.PortRange{Last: 65535}}}
	l, err := services.Lookup(s, all)
	if err != nil {
		t.Fatal(err)
	}
	if size := proto.Size(l); size > 4<<20 || len(l.GetEntries()) < 13_000 {
		t.Errorf("%d entries, %d bytes", len(l.GetEntries()), size)
	}
	ports := map[pb.Protocol]int{}
	for _, a := range l.GetAssignments() {
		if want := uint32(ports[a.GetProtocol()]); a.GetPorts().GetFirst() != want {
			t.Fatalf("%v follows %d", a, want)
		}
		ports[a.GetProtocol()] = int(a.GetPorts().GetLast()) + 1
	}
	for p, n := range ports {
		if n != 65536 {
			t.Errorf("%v ends at %d", p, n)
		}
	}
}

// What is more than a client takes is refused, with what to do instead, whatever the question is.
func TestLargeAnswers(t *testing.T) {
	var short, long []ianadb.Entry
	for i := range 60_000 {
		port := uint16(i + 1)
		short = append(short, ianadb.Entry{
			Name: fmt.Sprint("s", i), Port: fmt.Sprint(port), First: port, Last: port, Protocol: ianadb.TCP,
			Description: fmt.Sprint(i, strings.Repeat("x", 60)),
		})
	}
	for i := range 1000 {
		long = append(long, ianadb.Entry{
			Name: "x", Port: "7", First: 7, Last: 7, Protocol: ianadb.DCCP, ServiceCode: "1", Notes: fmt.Sprint(i, strings.Repeat("y", 4000)),
		})
	}
	tests := []struct {
		ask, field string
		entries    []ianadb.Entry
	}{
		{`ports {last: 65535}`, "ports", short},
		{`ports {first: 7}`, "ports", long},
		{`port: 7`, "port", long},
		{`name: "x"`, "name", long},
		{`service_code: 1`, "service_code", long},
	}
	for _, tt := range tests {
		l, err := services.Lookup(of(t, tt.entries), ask(t, tt.ask, &pb.LookupServicesRequest{}))
		if !errors.Is(err, registry.ErrInvalid) || !strings.HasPrefix(err.Error(), tt.field+": the answer has more than") || !strings.Contains(err.Error(), "page by page") {
			t.Errorf("%s: %d bytes, %.100v", tt.ask, proto.Size(l), err)
		}
	}
}

// Long entries make short pages, so that a page is never more than a client takes.
func TestLongEntries(t *testing.T) {
	var all []ianadb.Entry
	for port := range uint16(3000) {
		all = append(all, ianadb.Entry{
			Name: fmt.Sprint("x-", port), Port: fmt.Sprint(port), First: port, Last: port, Protocol: ianadb.TCP, Notes: strings.Repeat("y", 6000) + fmt.Sprint(port),
		})
	}
	s := of(t, all)
	for what, page := range map[string]func(token string) (m proto.Message, entries []*pb.ServiceEntry, next string, err error){
		"list": func(token string) (proto.Message, []*pb.ServiceEntry, string, error) {
			l, err := services.List(s, &pb.ListServicesRequest{PageSize: 1000, PageToken: token})
			return l, l.GetServices(), l.GetNextPageToken(), err
		},
		"search": func(token string) (proto.Message, []*pb.ServiceEntry, string, error) {
			l, err := services.Search(s, &pb.SearchServicesRequest{Query: "x", PageSize: 1000, PageToken: token})
			var found []*pb.ServiceEntry
			for _, m := range l.GetMatches() {
				found = append(found, m.GetEntries()...)
			}
			return l, found, l.GetNextPageToken(), err
		},
	} {
		seen := map[uint32]bool{}
		for token := ""; ; {
			m, entries, next, err := page(token)
			if err != nil {
				t.Fatal(what, err)
			}
			if size := proto.Size(m); size > 4<<20 {
				t.Errorf("%s: a page of %d bytes", what, size)
			}
			for _, e := range entries {
				if seen[e.GetPorts().GetFirst()] {
					t.Errorf("%s: %d comes twice", what, e.GetPorts().GetFirst())
				}
				seen[e.GetPorts().GetFirst()] = true
			}
			if token = next; token == "" {
				break
			}
		}
		if len(seen) != len(all) {
			t.Errorf("%s: %d entries", what, len(seen))
		}
	}
}
