package main

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"

	openapi2 "github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-openapiv2/options"
	openapi3 "github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-openapiv3/options"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// What the descriptions say of the API as a whole.
const (
	title       = "portd"
	version     = "v1"
	description = "The authority of a host's ports: who may have one, who has it, and what it is meant for.\n\n" +
		"The API is served on portd's control socket, which speaks gRPC and REST: " +
		"`curl --unix-socket /run/portd/portd.sock http://portd/v1/status`."
)

func (t tree) addOpenAPI2(ctx context.Context, api source) error {
	api = api.withOption(openapi2.E_Openapiv2Swagger, &openapi2.Swagger{
		Info: &openapi2.Info{Title: title, Version: version, Description: description},
	})
	files, err := api.generate(ctx, "protoc-gen-openapiv2", "allow_merge=true,merge_file_name=portd,openapi_naming_strategy=fqn")
	for _, content := range files {
		t["api/openapi/portd.v2.json"] = content
	}
	return err
}

func (t tree) addOpenAPI3(ctx context.Context, api source) error {
	api = api.withOption(openapi3.E_Openapiv3Document, &openapi3.Document{
		Info: &openapi3.Info{Title: title, Version: version, Description: description},
	})
	files, err := api.generate(ctx, "protoc-gen-openapiv3", "")
	if err != nil {
		return err
	}

	// The plugin writes a document per .proto file; its companion makes one of them, from files and in their order.
	dir, err := os.MkdirTemp("", "portd-openapi-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		part := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(part, []byte(files[name]), 0o644); err != nil {
			return err
		}
		parts = append(parts, part)
	}
	merged, err := tool(ctx, nil, "openapiv3-merge", parts...)
	t["api/openapi/portd.v3.json"] = string(merged)
	return err
}

// withOption sets an option on the files that are generated from. In the .proto files themselves it would make the
// API import the plugin's Go package, and every client link it.
func (s source) withOption(option protoreflect.ExtensionType, value proto.Message) source {
	set := slices.Clone(s.set)
	for i, f := range set {
		if slices.Contains(s.files, f.GetName()) {
			set[i] = proto.CloneOf(f)
			proto.SetExtension(set[i].Options, option, value)
		}
	}
	s.set = set
	return s
}
