// Package api_test holds the API to what was released of it.
package api_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "github.com/portd/portd/proto/portd/v1"
)

// TestBaseline is the heart of `buf breaking` without the tool, and with the REST paths, which buf does not know.
func TestBaseline(t *testing.T) {
	released := promises(t, baseline(t))
	for _, broken := range breaks(released, promisesOf(protoregistry.GlobalFiles)) {
		t.Errorf("released, and no longer so: %s: %s", broken, released[broken])
	}
}

func TestBreaks(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(f *descriptorpb.FileDescriptorProto)
		want []string
	}{
		{"nothing", func(*descriptorpb.FileDescriptorProto) {}, nil},
		{"field added", func(f *descriptorpb.FileDescriptorProto) {
			m := message(f, "ProcessLease")
			added := proto.CloneOf(m.Field[0])
			added.Name, added.JsonName, added.Number = proto.String("x"), proto.String("x"), proto.Int32(100)
			m.Field = append(m.Field, added)
		}, nil},
		{"field removed", func(f *descriptorpb.FileDescriptorProto) {
			message(f, "ProcessLease").Field = nil
		}, []string{"portd.v1.ProcessLease field 1"}},
		{"field renamed", func(f *descriptorpb.FileDescriptorProto) {
			message(f, "ProcessLease").Field[0].Name = proto.String("process_id")
		}, []string{"portd.v1.ProcessLease field 1"}},
		{"field renumbered", func(f *descriptorpb.FileDescriptorProto) {
			message(f, "ProcessLease").Field[0].Number = proto.Int32(2)
		}, []string{"portd.v1.ProcessLease field 1"}},
		{"field retyped", func(f *descriptorpb.FileDescriptorProto) {
			message(f, "ProcessLease").Field[0].Type = descriptorpb.FieldDescriptorProto_TYPE_INT64.Enum()
		}, []string{"portd.v1.ProcessLease field 1"}},
		{"field repeated", func(f *descriptorpb.FileDescriptorProto) {
			message(f, "ProcessLease").Field[0].Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
		}, []string{"portd.v1.ProcessLease field 1"}},
		{"enum value removed", func(f *descriptorpb.FileDescriptorProto) {
			f.EnumType[0].Value = f.EnumType[0].Value[:2]
		}, []string{"portd.v1.Mode value 2"}},
		{"method removed", func(f *descriptorpb.FileDescriptorProto) {
			f.Service[0].Method = f.Service[0].Method[1:]
		}, []string{"POST /v1/reservations", "portd.v1.ReservationService.Reserve"}},
		{"REST path changed", func(f *descriptorpb.FileDescriptorProto) {
			rule := proto.GetExtension(f.Service[0].Method[0].Options, annotations.E_Http).(*annotations.HttpRule)
			rule.Pattern = &annotations.HttpRule_Post{Post: "/v1/reserve"}
		}, []string{"POST /v1/reservations"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			changed := baseline(t)
			i := slices.IndexFunc(changed.File, func(f *descriptorpb.FileDescriptorProto) bool {
				return f.GetName() == "portd/v1/reservation.proto"
			})
			tt.edit(changed.File[i])
			got := breaks(promises(t, baseline(t)), promises(t, changed))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func message(f *descriptorpb.FileDescriptorProto, name string) *descriptorpb.DescriptorProto {
	i := slices.IndexFunc(f.MessageType, func(m *descriptorpb.DescriptorProto) bool { return m.GetName() == name })
	return f.MessageType[i]
}

func baseline(t *testing.T) *descriptorpb.FileDescriptorSet {
	t.Helper()
	b, err := os.ReadFile("baseline.binpb")
	if err != nil {
		t.Fatal(err)
	}
	set := new(descriptorpb.FileDescriptorSet)
	if err := proto.Unmarshal(b, set); err != nil {
		t.Fatal(err)
	}
	return set
}

func promises(t *testing.T, set *descriptorpb.FileDescriptorSet) map[string]string {
	t.Helper()
	files, err := protodesc.NewFiles(set)
	if err != nil {
		t.Fatal(err)
	}
	return promisesOf(files)
}

// breaks returns the promises that are not kept, sorted.
func breaks(released, now map[string]string) []string {
	var broken []string
	for _, promise := range slices.Sorted(maps.Keys(released)) {
		if now[promise] != released[promise] {
			broken = append(broken, promise)
		}
	}
	return broken
}

// promisesOf writes out what callers of portd.v1 rely on, each with what identifies it on the wire or in a URL.
func promisesOf(files *protoregistry.Files) map[string]string {
	all := map[string]string{}
	files.RangeFilesByPackage("portd.v1", func(f protoreflect.FileDescriptor) bool {
		addMessages(all, f.Messages())
		addEnums(all, f.Enums())
		for i := range f.Services().Len() {
			addMethods(all, f.Services().Get(i).Methods())
		}
		return true
	})
	return all
}

func addMessages(all map[string]string, messages protoreflect.MessageDescriptors) {
	for i := range messages.Len() {
		m := messages.Get(i)
		all[string(m.FullName())] = "message"
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			is := fmt.Sprintf("%s, JSON %s, %v %v, presence %v", f.Name(), f.JSONName(), f.Cardinality(), f.Kind(), f.HasPresence())
			if f.Message() != nil {
				is += " " + string(f.Message().FullName())
			}
			if f.Enum() != nil {
				is += " " + string(f.Enum().FullName())
			}
			if f.ContainingOneof() != nil {
				is += " of " + string(f.ContainingOneof().Name())
			}
			all[fmt.Sprintf("%s field %d", m.FullName(), f.Number())] = is
		}
		addMessages(all, m.Messages())
		addEnums(all, m.Enums())
	}
}

func addEnums(all map[string]string, enums protoreflect.EnumDescriptors) {
	for i := range enums.Len() {
		e := enums.Get(i)
		all[string(e.FullName())] = "enum"
		for j := range e.Values().Len() {
			v := e.Values().Get(j)
			all[fmt.Sprintf("%s value %d", e.FullName(), v.Number())] = string(v.Name())
		}
	}
}

func addMethods(all map[string]string, methods protoreflect.MethodDescriptors) {
	for i := range methods.Len() {
		m := methods.Get(i)
		all[string(m.FullName())] = fmt.Sprintf("%s, stream %v, to %s, stream %v",
			m.Input().FullName(), m.IsStreamingClient(), m.Output().FullName(), m.IsStreamingServer())

		rule := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
		for _, r := range append([]*annotations.HttpRule{rule}, rule.GetAdditionalBindings()...) {
			is := fmt.Sprintf("%s, body %q", m.FullName(), r.GetBody())
			for verb, path := range map[string]string{"GET": r.GetGet(), "POST": r.GetPost(), "PUT": r.GetPut(), "PATCH": r.GetPatch(), "DELETE": r.GetDelete()} {
				if path != "" {
					all[verb+" "+path] = is
				}
			}
		}
	}
}
