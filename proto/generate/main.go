// Command generate writes all that follows from the .proto files: the Go API, the REST gateway and the OpenAPI
// descriptions. It needs neither protoc nor a network: what the files import is linked into Go packages that portd
// uses anyway.
package main

//go:generate go run -C ../.. ./proto/generate

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	descriptors := flag.String("descriptors", "", "instead write the descriptors of the API to `FILE`, comments included")
	baseline := flag.String("baseline", "", "instead write the descriptors of the API to `FILE`, without comments")
	flag.Parse()
	if err := run(context.Background(), *descriptors, *baseline); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

// run works in the root of the module.
func run(ctx context.Context, descriptors, baseline string) error {
	api, err := find("proto", "portd/v1/*.proto")
	if err != nil {
		return err
	}
	set, err := compile(ctx, "proto", api)
	switch {
	case err != nil:
		return err
	case descriptors != "":
		return writeSet(descriptors, set)
	case baseline != "":
		for _, f := range set.File {
			f.SourceCodeInfo = nil
		}
		return writeSet(baseline, set)
	}

	w := writer{}
	defer w.removeStale()
	steps := []func() error{
		func() error { return goAPI(ctx, w, "proto", set, api) },
		func() error { return gateway(ctx, w, set, api) },
		func() error { return openAPI2(ctx, w, set, api) },
		func() error { return openAPI3(ctx, w, set, api) },
		func() error { return records(ctx, w) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
