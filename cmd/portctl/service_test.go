package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/ianadb"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
)

func TestParsePlaces(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in        []string
		want, err string
	}{
		{in: []string{"8123/tcp"}, want: "8123/tcp"},
		{in: []string{"TCP/8123"}, want: "8123/tcp"},
		{in: []string{"tcp 8123"}, want: "8123/tcp"},
		{in: []string{"8123/tcp", "8123/tcp,udp"}, want: "8123/tcp,udp"},
		{in: []string{"8123/tcp,udp", "9000-9009/sctp"}, want: "8123/tcp,udp and 9000-9009/sctp"},
		{in: []string{"1/dccp", "65535/udp"}, want: "1/dccp and 65535/udp"},
		{in: []string{"8123"}, err: "8123: which protocol? write 8123/tcp, or 8123/tcp,udp"},
		{in: []string{"udp"}, err: "udp: which port? write 8123/udp"},
		{in: []string{"8123/tcp4"}, err: "8123/tcp4: a service is for tcp, udp, sctp or dccp, not for tcp4"},
		{in: []string{"8123/icmp"}, err: "8123/icmp: a service is for tcp, udp, sctp or dccp, not for icmp"},
		{in: []string{"tcp/any"}, err: `"tcp/any" is not a port and protocol like 8123/tcp, 8123/tcp,udp or 8000-8010/udp`},
		{in: []string{"tcp/127.0.0.1:80"}, err: `"127.0.0.1:80" is not a port, 1 to 65535, nor a range of ports like 8000-8010`},
		{in: []string{"65536/tcp"}, err: `"65536" is not a port, 1 to 65535, nor a range of ports like 8000-8010`},
		{in: []string{"1-/tcp"}, err: `"1-" is not a port, 1 to 65535, nor a range of ports like 8000-8010`},
		{in: []string{"9-8/tcp"}, err: "9-8 runs backwards; write 8-9"},
	} {
		entries, err := parsePlaces("x", tt.in)
		switch {
		case err != nil && (err.Error() != tt.err || exitCode(err) != exitUsage):
			t.Errorf("%q: %v, want %q", tt.in, err, tt.err)
		case err == nil && placesText(entries) != tt.want:
			t.Errorf("%q is %s, want %s", tt.in, placesText(entries), tt.want)
		}
	}
}

// A list that the registry changes under begins anew, and is of one registry in the end.
func TestAllServicesBeginsAnew(t *testing.T) {
	t.Parallel()
	before := services.Embedded()
	own := ianadb.Entry{Name: "myapp", Port: "8123", First: 8123, Last: 8123, Protocol: ianadb.TCP}
	blob, err := ianadb.Compile([]ianadb.Entry{own}, ianadb.Source{})
	if err != nil {
		t.Fatal(err)
	}
	db, err := ianadb.Open(string(blob))
	if err != nil {
		t.Fatal(err)
	}
	after := *before
	after.Directory.Own, after.Own = db, []*registry.OwnService{{Entry: own, By: "uid:0", Revision: 7}}

	now, asked := before, 0
	all, err := allServices(&pb.ListServicesRequest{}, func(req *pb.ListServicesRequest) (*pb.ListServicesResponse, error) {
		if asked++; asked == 3 {
			now = &after
		}
		return services.List(now, req)
	})
	if err != nil {
		t.Fatal(err)
	}
	want, err := allServices(&pb.ListServicesRequest{}, func(req *pb.ListServicesRequest) (*pb.ListServicesResponse, error) {
		return services.List(&after, req)
	})
	if err != nil {
		t.Fatal(err)
	}
	same := slices.EqualFunc(all.GetServices(), want.GetServices(), func(a, b *pb.ServiceEntry) bool { return a.String() == b.String() })
	if got := all.GetServices(); !same || len(got) != before.IANA.Len()+1 || got[0].GetName() != "myapp" {
		t.Errorf("got %d entries that begin with %v, want the %d of the registry after its change", len(got), got[0], before.IANA.Len()+1)
	}

	// One that never stays is given up, and a refusal of the first page is no change.
	asked = 0
	_, err = allServices(&pb.ListServicesRequest{}, func(req *pb.ListServicesRequest) (*pb.ListServicesResponse, error) {
		if asked++; req.GetPageToken() != "" {
			return nil, fmt.Errorf("page_token: %w", client.ErrInvalid)
		}
		return services.List(before, req)
	})
	if exitCode(err) != exitFailed || asked != 2*mostStarts {
		t.Errorf("after %d pages: %v", asked, err)
	}
	// So does a search, which a word in every service makes long.
	now, asked = before, 0
	found, err := searchPages(&pb.SearchServicesRequest{Query: "e"}, math.MaxInt, func(req *pb.SearchServicesRequest) (*pb.SearchServicesResponse, error) {
		if asked++; asked == 3 {
			now = &after
		}
		return services.Search(now, req)
	})
	if err != nil || len(found.GetMatches()) != int(found.GetTotal()) || asked != 2+1+int(found.GetTotal())/mostOnPage+1 {
		t.Errorf("after %d pages: %d matches of %d (%v)", asked, len(found.GetMatches()), found.GetTotal(), err)
	}
	asked = 0
	_, err = allServices(&pb.ListServicesRequest{}, func(*pb.ListServicesRequest) (*pb.ListServicesResponse, error) {
		asked++
		return nil, client.ErrInvalid
	})
	if !errors.Is(err, client.ErrInvalid) || asked != 1 {
		t.Errorf("after %d pages: %v", asked, err)
	}
}
