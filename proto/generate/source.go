package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	_ "google.golang.org/genproto/googleapis/api/annotations" // google/api/annotations.proto, google/api/field_behavior.proto
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	_ "google.golang.org/protobuf/types/known/durationpb"  // google/protobuf/duration.proto
	_ "google.golang.org/protobuf/types/known/fieldmaskpb" // google/protobuf/field_mask.proto
	_ "google.golang.org/protobuf/types/known/timestamppb" // google/protobuf/timestamp.proto
	"google.golang.org/protobuf/types/pluginpb"
)

// A source is some .proto files, compiled.
type source struct {
	root  string                              // what their names and imports start from
	files []string                            // their names, sorted
	set   []*descriptorpb.FileDescriptorProto // they and all that they import, after what each imports
}

// load compiles the files below root that match pattern; it may match none.
func load(ctx context.Context, root, pattern string) (source, error) {
	paths, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil {
		return source{}, err
	}
	src := source{root: root}
	for _, p := range paths {
		name, err := filepath.Rel(root, p)
		if err != nil {
			return source{}, err
		}
		src.files = append(src.files, filepath.ToSlash(name))
	}

	compiler := protocompile.Compiler{
		Resolver: protocompile.CompositeResolver{
			&protocompile.SourceResolver{ImportPaths: []string{root, "proto"}},
			protocompile.ResolverFunc(linkedIn),
		},
		SourceInfoMode: protocompile.SourceInfoStandard, // the comments become documentation
	}
	compiled, err := compiler.Compile(ctx, src.files...)
	if err != nil {
		return source{}, err
	}
	seen := map[string]bool{}
	for _, f := range compiled {
		src.add(f, seen)
	}
	return src, nil
}

// linkedIn finds the imports that are not portd's own in the Go packages generated from them.
func linkedIn(path string) (protocompile.SearchResult, error) {
	f, err := protoregistry.GlobalFiles.FindFileByPath(path)
	return protocompile.SearchResult{Desc: f}, err
}

// add appends f behind what it imports.
func (s *source) add(f protoreflect.FileDescriptor, seen map[string]bool) {
	if seen[f.Path()] {
		return
	}
	seen[f.Path()] = true
	for i := range f.Imports().Len() {
		s.add(f.Imports().Get(i), seen)
	}
	s.set = append(s.set, protoutil.ProtoFromFileDescriptor(f))
}

// withoutComments also leaves out where everything stands in its file.
func (s source) withoutComments() source {
	set := make([]*descriptorpb.FileDescriptorProto, len(s.set))
	for i, f := range s.set {
		set[i] = proto.CloneOf(f)
		set[i].SourceCodeInfo = nil
	}
	s.set = set
	return s
}

func (s source) writeSet(path string) error {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&descriptorpb.FileDescriptorSet{File: s.set})
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// generate runs a protoc plugin that go.mod names as a tool, over all the files at once, and returns what it wants
// written.
func (s source) generate(ctx context.Context, plugin, parameter string) (map[string]string, error) {
	if len(s.files) == 0 {
		return nil, nil
	}
	req, err := proto.MarshalOptions{Deterministic: true}.Marshal(&pluginpb.CodeGeneratorRequest{
		FileToGenerate: s.files,
		Parameter:      proto.String(parameter),
		ProtoFile:      s.set,
	})
	if err != nil {
		return nil, err
	}
	answer, err := tool(ctx, req, plugin)
	if err != nil {
		return nil, err
	}
	var resp pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(answer, &resp); err != nil {
		return nil, fmt.Errorf("%s: %w", plugin, err)
	}
	if resp.Error != nil {
		return nil, fmt.Errorf("%s: %w", plugin, errors.New(resp.GetError()))
	}
	files := map[string]string{}
	for _, f := range resp.File {
		files[f.GetName()] = f.GetContent()
	}
	return files, nil
}

// tool runs one of go.mod's tools; what it says beside its output goes to stderr.
func tool(ctx context.Context, stdin []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"tool", name}, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go tool %s: %w", name, err)
	}
	return out, nil
}
