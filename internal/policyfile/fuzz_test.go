package policyfile_test

import (
	"os"
	"strings"
	"testing"

	"github.com/portd/portd/internal/policyfile"
	"github.com/portd/portd/internal/registry"
)

// Whatever a file says, it is either refused with a place, or makes settings that make sense.
func FuzzParse(f *testing.F) {
	example, err := os.ReadFile("../../examples/policy/policy.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(example))
	for _, seed := range []string{
		"", "---\n", "{}", "[]", "null", "pools: {ci: {tcp: [1-2, 3], avoid: []}}", "pools: {default: {quarantine: 1h}}", "a: &a [*a]", "pools: &p {x: *p}",
		"pools: {? [a] : b}", "%YAML 1.1\n---\npools:\n", "\xff\xfep\x00", "history: {revisions: 1e6, age: 1h}", "pools: {ci: !!binary aGVsbG8=}",
		"history: {revisions: !!int x}", "pools: {ci: {tcp: !!str 80}}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := policyfile.Parse("p", []byte(text))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "p:") {
				t.Errorf("%q has no place", err)
			}
			return
		}
		names := map[string]bool{}
		for _, p := range s.Pools {
			if err := registry.ValidateName(p.Name); err != nil || names[p.Name] {
				t.Errorf("pool %q: again: %v, %v", p.Name, names[p.Name], err)
			}
			names[p.Name] = true
			if len(p.Ports) == 0 || p.Quarantine < 0 {
				t.Errorf("pool %+v", p)
			}
			for proto, ports := range p.Ports {
				if len(ports.Ranges) == 0 {
					t.Errorf("pool %s has no %v ports", p.Name, proto)
				}
				for _, r := range ports.Ranges {
					if r.First == 0 || r.Last < r.First {
						t.Errorf("pool %s has %v %v", p.Name, proto, r)
					}
				}
			}
		}
		if s.History.Revisions < 0 || s.History.Age < 0 {
			t.Errorf("history %+v", s.History)
		}
	})
}
