package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A source answers questions about services: portd, or where there is none the registry that portctl can read itself.
type source struct {
	c     *ctl
	cl    *client.Client     // nil: no portd answers
	own   *registry.Services // instead of it
	where string             // own is from
}

// whoisPatience is how long to wait for a portd that does not answer.
const whoisPatience = 10 * time.Second

// openSource never fails: there is always a registry that answers, whatever kept portd from being asked.
func (c *ctl) openSource(ctx context.Context) *source {
	ctx, cancel := context.WithTimeout(ctx, whoisPatience)
	defer cancel()
	s := &source{c: c}
	var err error
	if s.cl, err = c.dial(ctx); err != nil {
		s.goAlone(err)
	}
	return s
}

func (s *source) close() {
	if s.cl != nil {
		_ = s.cl.Close()
	}
}

// alone says that portd was not asked.
func (s *source) alone() bool { return s.own != nil }

// goAlone answers without portd from here on.
func (s *source) goAlone(why error) {
	s.own, s.where = s.c.offlineServices()
	whose := "the IANA registry's part"
	if len(s.own.Own) > 0 {
		whose = "the part of the IANA registry and of this host's own services"
	}
	s.c.warn("%v; this is %s alone, from %s", why, whose, s.where)
}

// gaveUp says that portd is not there or does not answer, rather than that its answer is no.
func gaveUp(err error) bool {
	return errors.Is(err, client.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
}

// ask asks portd while that answers, and otherwise alone.
func ask[A any](ctx context.Context, s *source, portd func(context.Context) (A, error), alone func() (A, error)) (A, error) {
	if s.alone() {
		return alone()
	}
	within, cancel := context.WithTimeout(ctx, whoisPatience)
	defer cancel()
	a, err := portd(within)
	if err != nil && gaveUp(err) && ctx.Err() == nil {
		s.goAlone(err)
		return alone()
	}
	return a, err
}

func (s *source) whois(ctx context.Context, q question) (*pb.WhoisResponse, error) {
	lookup, req := &pb.LookupServicesRequest{Protocol: q.proto}, &pb.WhoisRequest{Protocol: q.proto, Netns: s.c.netns}
	ports := &pb.PortRange{First: uint32(q.first), Last: uint32(q.last)}
	switch {
	case q.name != "":
		lookup.Query, req.Query = &pb.LookupServicesRequest_Name{Name: q.name}, &pb.WhoisRequest_Name{Name: q.name}
	case q.code != nil:
		lookup.Query, req.Query = &pb.LookupServicesRequest_ServiceCode{ServiceCode: *q.code}, &pb.WhoisRequest_ServiceCode{ServiceCode: *q.code}
	case q.isRange():
		lookup.Query, req.Query = &pb.LookupServicesRequest_Ports{Ports: ports}, &pb.WhoisRequest_Ports{Ports: ports}
	default:
		lookup.Query, req.Query = &pb.LookupServicesRequest_Port{Port: ports.First}, &pb.WhoisRequest_Port{Port: ports.First}
	}
	return ask(ctx, s, func(ctx context.Context) (*pb.WhoisResponse, error) {
		return s.cl.Ports.Whois(ctx, req)
	}, func() (*pb.WhoisResponse, error) {
		l, err := services.Lookup(s.own, lookup)
		return &pb.WhoisResponse{Lookup: l, Hidden: []string{"no portd was asked: who has the port here is not known"}}, err
	})
}

// nearNames are the names that the registry has instead of one that it does not have, the likeliest first.
func nearNames(err error) []string {
	var (
		alone *services.NoServiceError
		portd *client.Error
	)
	switch {
	case errors.As(err, &alone):
		return alone.Near
	case errors.As(err, &portd) && portd.Metadata["near"] != "":
		return strings.Split(portd.Metadata["near"], ",")
	}
	return nil
}

// registryText says which registry an answer is of.
func (s *source) registryText(l *pb.ServiceLookup) string {
	text := registryDate(l.GetRegistryDate())
	if l.GetRegistrySource() == registry.Imported.String() {
		text += ", imported"
	}
	if s.alone() {
		text += ", " + s.where
	}
	return text
}

// registryDate is a registry by its date; one that was imported as a CSV may have none.
func registryDate(date string) string {
	if date == "" {
		return "registry without a date"
	}
	return "registry of " + printable(date)
}
