package openapi_test

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/portd/portd/api/openapi"
	_ "github.com/portd/portd/proto/portd/v1"
)

// A document is what we look at in either version; definitions stand at the top in one, in components in the other.
type document struct {
	Swagger string
	OpenAPI string
	Info    struct{ Title, Version, Description string }
	Paths   map[string]map[string]struct{ OperationID, Summary string }

	Definitions map[string]schema
	Components  struct{ Schemas map[string]schema }
}

type schema struct{ Required []string }

func TestDocuments(t *testing.T) {
	for _, tt := range []struct {
		version string
		json    []byte
	}{
		{"2.0", openapi.V2},
		{"3.1.0", openapi.V31},
	} {
		t.Run(tt.version, func(t *testing.T) {
			var doc document
			if err := json.Unmarshal(tt.json, &doc); err != nil {
				t.Fatal(err)
			}
			if got := doc.Swagger + doc.OpenAPI; got != tt.version {
				t.Errorf("document is of OpenAPI %q", got)
			}
			if doc.Info.Title != "portd" || doc.Info.Version == "" || doc.Info.Description == "" {
				t.Errorf("info is %+v", doc.Info)
			}

			var got []string
			for path, item := range doc.Paths {
				for verb, op := range item {
					got = append(got, strings.ToUpper(verb)+" "+anonymous(path))
					if path == "/v1/reservations" && verb == "post" && !strings.HasPrefix(op.Summary, "Reserve takes") {
						t.Errorf("%s has lost its comment: %q", op.OperationID, op.Summary)
					}
				}
			}
			slices.Sort(got)
			if want := bindings(); !slices.Equal(got, want) {
				t.Errorf("document has\n%s\nthe API has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}

			const spec = "portd.v1.ReservationSpec"
			required := append(doc.Definitions[spec].Required, doc.Components.Schemas[spec].Required...)
			if !slices.Equal(required, []string{"endpoints"}) {
				t.Errorf("%s requires %q, want endpoints", spec, required)
			}
		})
	}
}

// bindings lists the verb and path of every REST call that the .proto files declare.
func bindings() []string {
	var all []string
	protoregistry.GlobalFiles.RangeFilesByPackage("portd.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			methods := f.Services().Get(i).Methods()
			for j := range methods.Len() {
				rule := proto.GetExtension(methods.Get(j).Options(), annotations.E_Http).(*annotations.HttpRule)
				for _, r := range append(rule.AdditionalBindings, rule) {
					for verb, path := range map[string]string{"GET": r.GetGet(), "POST": r.GetPost(), "PUT": r.GetPut(), "PATCH": r.GetPatch(), "DELETE": r.GetDelete()} {
						if path != "" {
							all = append(all, verb+" "+anonymous(path))
						}
					}
				}
			}
		}
		return true
	})
	slices.Sort(all)
	return all
}

var parameter = regexp.MustCompile(`\{[^}]*\}`)

// anonymous leaves out the names of path parameters: the two generators spell them differently.
func anonymous(path string) string {
	return parameter.ReplaceAllString(path, "{}")
}
