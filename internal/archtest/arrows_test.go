// Package archtest guards the shape of the project: which package may know which.
package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/portd/portd/"

// arrows are the packages of ours that each package may import, tests aside. A package that is not in here fails the
// test, so that whoever adds one thinks about where it belongs.
var arrows = map[string][]string{
	"proto/portd/v1":                      nil,
	"proto/generate":                      nil,
	"api":                                 nil,
	"api/openapi":                         nil,
	"internal/archtest":                   nil,
	"internal/asuser":                     nil,
	"internal/etcservices":                {"internal/ianadb"},
	"internal/fdbag":                      {"internal/fdpass"},
	"internal/fdstore":                    {"internal/fdpass"},
	"internal/fdpass":                     nil,
	"internal/holder":                     nil,
	"internal/ianadb":                     nil,
	"internal/ianadb/gen":                 {"internal/ianadb"},
	"internal/netns":                      {"internal/peercred", "internal/registry"},
	"internal/natrules":                   {"internal/registry"},
	"internal/keeper":                     {"internal/fdpass", "internal/fdstore", "internal/lossy"},
	"internal/lossy":                      nil,
	"internal/model":                      nil,
	"internal/nstest":                     nil,
	"internal/paths":                      nil,
	"internal/peercred":                   nil,
	"internal/shortage":                   nil,
	"internal/skew":                       nil,
	"internal/sockdiag":                   nil,
	"internal/wire":                       nil,
	"internal/registry":                   {"internal/ianadb"},
	"internal/registry/boltstore":         {"internal/ianadb", "internal/registry", "internal/registry/boltstore/storepb"},
	"internal/registry/boltstore/storepb": nil,
	"internal/registry/storetest":         {"internal/ianadb", "internal/registry"},
	"internal/policyfile":                 {"internal/registry"},
	"internal/services":                   {"internal/ianadb", "internal/registry", "proto/portd/v1"},
	"internal/localports":                 {"internal/registry"},
	"internal/pidwatch":                   {"internal/registry"},
	"internal/binder":                     {"internal/asuser", "internal/fdbag", "internal/fdpass", "internal/fdstore", "internal/registry", "internal/shortage", "internal/sockdiag"},
	"internal/handoff":                    {"internal/fdbag", "internal/fdpass", "internal/fdstore", "internal/holder", "internal/peercred", "internal/registry", "internal/shortage", "internal/sockdiag", "internal/wire"},
	"internal/rpc": {
		"api/openapi", "internal/ianadb", "internal/peercred", "internal/registry", "internal/rpc/portdgw", "internal/services",
		"internal/shortage", "proto/portd/v1",
	},
	"internal/rpc/portdgw": {"proto/portd/v1"},
	"internal/daemon": {
		"internal/binder", "internal/fdstore", "internal/handoff", "internal/holder", "internal/ianadb", "internal/keeper", "internal/localports", "internal/natrules", "internal/netns", "internal/paths",
		"internal/peercred", "internal/pidwatch", "internal/policyfile", "internal/registry", "internal/registry/boltstore", "internal/rpc",
	},
	"internal/portdtest":  {"client", "internal/daemon", "internal/paths"},
	"internal/starvation": nil,
	"client": {
		"internal/fdpass", "internal/paths", "internal/peercred", "internal/registry", "internal/wire", "proto/portd/v1",
	},
	"bench/handoff":        {"client", "proto/portd/v1"},
	"bench/handoff/server": {"client"},
	"cmd/portd":            {"internal/daemon", "internal/keeper"},
	"cmd/portctl": {
		"client", "internal/etcservices", "internal/ianadb", "internal/paths", "internal/registry",
		"internal/registry/boltstore", "internal/services", "proto/portd/v1",
	},
}

// strangers are packages of others that must not reach where they would hurt.
var strangers = []struct{ in, not, why string }{
	{"internal/registry", "google.golang.org/grpc", "the domain knows no door"},
	{"internal/registry", "go.etcd.io/bbolt", "the domain knows no place that it is kept in"},
	{"internal/ianadb", "google.golang.org/grpc", "a look-up costs next to nothing"},
	{"client", "github.com/grpc-ecosystem/grpc-gateway", "programs that import the client do not link the gateway"},
	{"cmd/portctl", "github.com/grpc-ecosystem/grpc-gateway", "portctl starts fast"},
}

func TestArrows(t *testing.T) {
	t.Parallel()
	imports := importsOf(t, "../..")
	for pkg, all := range imports {
		may, known := arrows[pkg]
		if !known && !strings.HasPrefix(pkg, "examples/") {
			t.Errorf("%s is new here: say in arrows what it may import", pkg)
			continue
		}
		for _, imp := range all {
			ours, isOurs := strings.CutPrefix(imp, module)
			if isOurs && known && !slices.Contains(may, ours) {
				t.Errorf("%s imports %s; it may import %v", pkg, ours, may)
			}
		}
	}
	for pkg := range arrows {
		if imports[pkg] == nil && pkg != "internal/archtest" && pkg != "api" {
			t.Errorf("%s is in arrows and not in the tree", pkg)
		}
	}
}

func TestStrangers(t *testing.T) {
	t.Parallel()
	imports := importsOf(t, "../..")
	for _, s := range strangers {
		for _, pkg := range reaches(imports, s.in) {
			for _, imp := range imports[pkg] {
				if strings.HasPrefix(imp, s.not) {
					t.Errorf("%s reaches %s by way of %s; %s", s.in, imp, pkg, s.why)
				}
			}
		}
	}
}

// reaches is a package of ours and all of ours that it imports, directly or not.
func reaches(imports map[string][]string, pkg string) []string {
	all := []string{pkg}
	for i := 0; i < len(all); i++ {
		for _, imp := range imports[all[i]] {
			if ours, ok := strings.CutPrefix(imp, module); ok && !slices.Contains(all, ours) {
				all = append(all, ours)
			}
		}
	}
	return all
}

// importsOf reads what each package below root imports, its tests aside.
func importsOf(t *testing.T, root string) map[string][]string {
	t.Helper()
	imports := map[string][]string{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && file != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "tools" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		pkg := path.Dir(filepath.ToSlash(rel))
		if imports[pkg] == nil {
			imports[pkg] = []string{}
		}
		for _, imp := range f.Imports {
			name, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			imports[pkg] = append(imports[pkg], name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return imports
}
