// Command generate writes all that follows from the .proto files: the Go API, the REST gateway and the OpenAPI
// descriptions. It needs neither protoc nor a network: what the files import is linked into Go packages that portd
// uses anyway.
package main

//go:generate go run -C ../.. ./proto/generate

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	descriptors := flag.String("descriptors", "", "write only the descriptors of the API, comments included, to `FILE`")
	baseline := flag.String("baseline", "", "write only the descriptors of the API, without comments, to `FILE`")
	flag.Parse()
	if err := run(context.Background(), *descriptors, *baseline); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

// run works in the root of the module.
func run(ctx context.Context, descriptors, baseline string) error {
	api, err := load(ctx, "proto", "portd/v1/*.proto")
	if err != nil {
		return err
	}
	switch {
	case descriptors != "":
		return api.writeSet(descriptors)
	case baseline != "":
		return api.withoutComments().writeSet(baseline)
	}
	// Records of the store are nobody's interface: Go structs and no more.
	records, err := load(ctx, ".", "internal/registry/boltstore/storepb/*.proto")
	if err != nil {
		return err
	}

	out := tree{}
	if err := out.addGo(ctx, api, "protoc-gen-go"); err != nil {
		return err
	}
	if err := out.addGo(ctx, api, "protoc-gen-go-grpc"); err != nil {
		return err
	}
	if err := out.addGo(ctx, records, "protoc-gen-go"); err != nil {
		return err
	}
	if err := out.addGateway(ctx, api); err != nil {
		return err
	}
	if err := out.addOpenAPI2(ctx, api); err != nil {
		return err
	}
	if err := out.addOpenAPI3(ctx, api); err != nil {
		return err
	}
	return out.write()
}

// A tree is the generated files, by their paths in the module. Nothing is written before all of it is there.
type tree map[string]string

// addGo adds what a plugin writes beside the .proto files.
func (t tree) addGo(ctx context.Context, src source, plugin string) error {
	files, err := src.generate(ctx, plugin, "paths=source_relative")
	for name, content := range files {
		t[filepath.Join(src.root, name)] = content
	}
	return err
}

// addGateway adds the REST gateway as a package of its own, so that programs which only import the API do not link
// it. The plugin can do that but for the names: it calls the new package as it calls the API's.
func (t tree) addGateway(ctx context.Context, api source) error {
	files, err := api.generate(ctx, "protoc-gen-grpc-gateway", "paths=source_relative,standalone=true,omit_package_doc=true")
	names := strings.NewReplacer("\npackage portdv1\n", "\npackage portdgw\n", "extPortdv1", "pb")
	for name, content := range files {
		t[filepath.Join("internal/rpc/portdgw", filepath.Base(name))] = names.Replace(content)
	}
	return err
}

// write fails when files are left over from .proto files or services that are gone. It leaves them where they are: go
// generate, which runs this, stumbles over files that vanish.
func (t tree) write() error {
	dirs := map[string]bool{}
	for name, content := range t {
		dirs[filepath.Dir(name)] = true
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return err
		}
	}
	for dir := range dirs {
		generated, err := filepath.Glob(filepath.Join(dir, "*.pb*.go")) // .pb.go and .pb.gw.go
		if err != nil {
			return err
		}
		for _, name := range generated {
			if _, ok := t[name]; !ok {
				return fmt.Errorf("nothing generates %s any more: remove it", name)
			}
		}
	}
	return nil
}
