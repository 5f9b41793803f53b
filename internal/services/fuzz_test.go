package services_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/services"
	pb "github.com/portd/portd/proto/portd/v1"
)

// Whatever entry comes over the wire is refused or understood, and what is understood is the same when it is sent back.
func FuzzEntry(f *testing.F) {
	for _, text := range []string{
		`name: "myapp" protocol: 1 ports {first: 8123} description: "what we make"`,
		`name: "x" protocol: 5 ports {first: 1 last: 2}`,
		`name: "y" ports {first: 65536}`,
		`name: "dec_dlm" notes: "This entry is an alias to \"dec-dlm\"." alias_of: "dec-dlm"`,
		``,
	} {
		wire, err := proto.Marshal(ask(f, text, &pb.ServiceEntry{}))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		var e pb.ServiceEntry
		if proto.Unmarshal(wire, &e) != nil {
			return
		}
		in, err := services.ToEntry("f", &e)
		if err != nil {
			if !errors.Is(err, registry.ErrInvalid) {
				t.Fatalf("%v: %v", &e, err)
			}
			return
		}
		out := services.Own(&registry.OwnService{Entry: in})
		if again, err := services.ToEntry("f", out); err != nil || again != in {
			t.Fatalf("%v is understood as %v, and %v as %v (%v)", &e, in, out, again, err)
		}
	})
}

// Whatever question comes is refused or answered, and a page goes on where another ended or is refused.
func FuzzQuestions(f *testing.F) {
	s := host(f)
	first, err := services.List(s, &pb.ListServicesRequest{PageSize: 1})
	if err != nil {
		f.Fatal(err)
	}
	token, err := base64.RawURLEncoding.DecodeString(first.GetNextPageToken())
	if err != nil {
		f.Fatal(err)
	}
	of, _, _ := strings.Cut(string(token), ".")
	f.Add(`port: 443`, "mail tls", of, int64(1), int32(3))
	f.Add(`ports {first: 1 last: 0}`, "é \x00", of, int64(1)<<62, int32(-1))
	f.Add(`service_code: 1 protocol: 4`, "", "", int64(-1), int32(1)<<30)
	f.Add(`name: "CL/1" protocol: -7`, "a b c", "g", int64(0), int32(0))
	f.Fuzz(func(t *testing.T, question, words, of string, skip int64, size int32) {
		var lookup pb.LookupServicesRequest
		if prototext.Unmarshal([]byte(question), &lookup) == nil {
			if l, err := services.Lookup(s, &lookup); err != nil && !errors.Is(err, registry.ErrInvalid) && !errors.Is(err, registry.ErrNotFound) || err == nil && l == nil {
				t.Fatalf("%v: %v, %v", &lookup, l, err)
			}
		}
		token := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%s.%d", of, skip))
		l, err := services.List(s, &pb.ListServicesRequest{PageToken: token, PageSize: size})
		if err != nil && !errors.Is(err, registry.ErrInvalid) || len(l.GetServices()) > 1000 {
			t.Fatalf("%d of %q: %d entries, %v", size, token, len(l.GetServices()), err)
		}
		m, err := services.Search(s, &pb.SearchServicesRequest{Query: words, PageSize: size})
		if err != nil && !errors.Is(err, registry.ErrInvalid) || len(m.GetMatches()) > 1000 {
			t.Fatalf("%d of %q: %d matches, %v", size, words, len(m.GetMatches()), err)
		}
	})
}
