package policyfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/policyfile"
	"github.com/portd/portd/internal/registry"
)

const everything = registry.AvoidEphemeral | registry.AvoidNodePorts | registry.AvoidAssigned

// ports are single ports and pairs of the ends of ranges.
func ranges(r ...registry.PortRange) registry.PoolPorts { return registry.PoolPorts{Ranges: r} }

func TestParse(t *testing.T) {
	only := func(p registry.Pool) registry.Settings { return registry.Settings{Pools: []registry.Pool{p}} }
	tests := []struct {
		name, text string
		want       registry.Settings
	}{
		{"nothing", "", registry.Settings{}},
		{"comments only", "# pools:\n", registry.Settings{}},
		{"all below is commented out", "pools:\n#  ci:\nhistory:\n", registry.Settings{}},
		{"history", "history: {revisions: 1000, age: 720h}", registry.Settings{History: registry.History{Revisions: 1000, Age: 720 * time.Hour}}},
		{"underscores", "history: {revisions: 100_000}", registry.Settings{History: registry.History{Revisions: 100_000}}},
		{"one range", "pools: {ci: {tcp: 20000-24999}}", only(registry.Pool{
			Name: "ci", Quarantine: time.Minute,
			Ports: map[registry.Protocol]registry.PoolPorts{registry.TCP: ranges(registry.PortRange{First: 20000, Last: 24999})},
		})},
		{"a bare port is a number to YAML", "pools: {ci: {udp: 26000}}", only(registry.Pool{
			Name: "ci", Quarantine: time.Minute,
			Ports: map[registry.Protocol]registry.PoolPorts{registry.UDP: ranges(registry.PortRange{First: 26000, Last: 26000})},
		})},
		{"everything said", `
pools:
  ci:
    tcp,udp: 20000-24999, 26000
    sctp: [1-9, 65535, "80"]
    strategy: next
    avoid: [ephemeral, node-ports]
    quarantine: 5m
`, only(registry.Pool{
			Name: "ci", Strategy: registry.StrategyNext, Quarantine: 5 * time.Minute,
			Ports: map[registry.Protocol]registry.PoolPorts{
				registry.TCP:  {Ranges: []registry.PortRange{{First: 20000, Last: 24999}, {First: 26000, Last: 26000}}, Avoid: registry.AvoidEphemeral | registry.AvoidNodePorts},
				registry.UDP:  {Ranges: []registry.PortRange{{First: 20000, Last: 24999}, {First: 26000, Last: 26000}}, Avoid: registry.AvoidEphemeral | registry.AvoidNodePorts},
				registry.SCTP: {Ranges: []registry.PortRange{{First: 1, Last: 9}, {First: 65535, Last: 65535}, {First: 80, Last: 80}}, Avoid: registry.AvoidEphemeral | registry.AvoidNodePorts},
			},
		})},
		{"no quarantine", "pools: {ci: {tcp: 9000, strategy: lowest, quarantine: 0}}", only(registry.Pool{
			Name: "ci", Strategy: registry.StrategyLowest,
			Ports: map[registry.Protocol]registry.PoolPorts{registry.TCP: ranges(registry.PortRange{First: 9000, Last: 9000})},
		})},
		{"one kind to avoid, by a word", "pools: {ci: {tcp: 9000, avoid: assigned}}", only(registry.Pool{
			Name: "ci", Quarantine: time.Minute,
			Ports: map[registry.Protocol]registry.PoolPorts{registry.TCP: {Ranges: []registry.PortRange{{First: 9000, Last: 9000}}, Avoid: registry.AvoidAssigned}},
		})},
		{"an alias", "pools: {a: {tcp: &x 9000-9009}, b: {udp: *x}}", registry.Settings{Pools: []registry.Pool{
			{Name: "a", Quarantine: time.Minute, Ports: map[registry.Protocol]registry.PoolPorts{registry.TCP: ranges(registry.PortRange{First: 9000, Last: 9009})}},
			{Name: "b", Quarantine: time.Minute, Ports: map[registry.Protocol]registry.PoolPorts{registry.UDP: ranges(registry.PortRange{First: 9000, Last: 9009})}},
		}}},
		{"the default pool as it is", "pools: {default: }", only(registry.DefaultPoolOf())},
		{"the default pool, with its own ports for one protocol", "pools: {default: {tcp: 9000, quarantine: 1h}}", func() registry.Settings {
			p := registry.DefaultPoolOf()
			p.Ports[registry.TCP] = ranges(registry.PortRange{First: 9000, Last: 9000})
			p.Quarantine = time.Hour
			return only(p)
		}()},
		{"the default pool, avoiding nothing", "pools: {default: {avoid: []}}", func() registry.Settings {
			p := registry.DefaultPoolOf()
			for proto, ports := range p.Ports {
				if ports.Avoid != everything {
					t.Errorf("%v: portd's own choice avoids %v", proto, ports.Avoid)
				}
				ports.Avoid = 0
				p.Ports[proto] = ports
			}
			return only(p)
		}()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := policyfile.Parse("policy.yaml", []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Each error has the line, what is wrong there and what is allowed.
func TestErrors(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"a tab", "pools:\n\tci: {}", "policy.yaml:2: is not YAML: found character that cannot start any token"},
		{"an open bracket", "pools: {ci: [", "policy.yaml:1: is not YAML: did not find expected node content"},
		{"a word", "pools", `policy.yaml:1: is "pools"; a policy file has keys with values, like "pools:"`},
		{"a list", "- pools", `policy.yaml:1: is a list; a policy file has keys with values, like "pools:"`},
		{"two documents", "pools:\n---\nhistory:\n", "policy.yaml:2: a second document begins here; a policy file is one"},
		{"an unknown section", "pool:\n", "policy.yaml:1: pool: is unknown; known are pools, history"},
		{"a section twice", "pools:\nhistory:\npools:\n", "policy.yaml:3: pools: is there twice; first in line 1"},
		{"a pool twice", "pools:\n  ci: {tcp: 80}\n  ci: {tcp: 80}\n", "policy.yaml:3: pools.ci: is there twice; first in line 2"},
		{
			"an unknown key", "pools:\n  ci:\n    tcp: 80\n    stratgy: lowest\n",
			"policy.yaml:4: pools.ci.stratgy: is unknown; known are protocols (tcp, udp, sctp, dccp, udplite), strategy, avoid, quarantine",
		},
		{
			"an unknown protocol", "pools: {ci: {tcpp: 80}}",
			"policy.yaml:1: pools.ci.tcpp: is unknown; known are protocols (tcp, udp, sctp, dccp, udplite), strategy, avoid, quarantine",
		},
		{"a key that is none", "pools: {[a]: 1}", "policy.yaml:1: pools: has a list for a key; a word is wanted"},
		{"a protocol twice", "pools:\n  ci:\n    \"tcp,udp\": 80\n    udp: 90\n", "policy.yaml:4: pools.ci.udp: udp is there twice in this pool"},
		{
			"a pool's name", "pools: {CI: {tcp: 80}}",
			`policy.yaml:1: pools: "CI" is not a name; allowed are 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter first`,
		},
		{"a word for a name", "pools: {tcp: {tcp: 80}}", `policy.yaml:1: pools: "tcp" is a word of portd's; choose another`},
		{"a pool that is none", "pools: {ci: 80}", `policy.yaml:1: pools.ci: is "80"; keys with values are wanted`},
		{"no ports", "pools:\n  ci:\n    strategy: next\n", "policy.yaml:2: pools.ci: has no ports; give it some, like tcp: 20000-24999, 26000"},
		{"an empty list", "pools: {ci: {tcp: []}}", "policy.yaml:1: pools.ci.tcp: is empty; wanted is something like 20000-24999, 26000, or no such key"},
		{"nothing", "pools: {ci: {tcp: }}", "policy.yaml:1: pools.ci.tcp: is nothing; wanted is something like 20000-24999, 26000"},
		{"backwards", "pools:\n ci:\n  tcp:\n   - 80\n   - 24999-20000\n", "policy.yaml:5: pools.ci.tcp: 24999-20000 runs backwards; write 20000-24999"},
		{"port 0", "pools: {ci: {tcp: 0-9}}", `policy.yaml:1: pools.ci.tcp: "0-9" is no port and no range; allowed are 1 to 65535, as in 20000-24999, 26000`},
		{"port 65536", "pools: {ci: {tcp: 65536}}", `policy.yaml:1: pools.ci.tcp: "65536" is no port and no range; allowed are 1 to 65535, as in 20000-24999, 26000`},
		{"a comma too many", "pools: {ci: {tcp: '80,'}}", `policy.yaml:1: pools.ci.tcp: "" is no port and no range; allowed are 1 to 65535, as in 20000-24999, 26000`},
		{"a range in a range", "pools: {ci: {tcp: 80-90-99}}", `policy.yaml:1: pools.ci.tcp: "80-90-99" is no port and no range; allowed are 1 to 65535, as in 20000-24999, 26000`},
		{"a fraction", "pools: {ci: {tcp: 80.5}}", `policy.yaml:1: pools.ci.tcp: is "80.5"; wanted is something like 20000-24999, 26000`},
		{"a mapping", "pools: {ci: {tcp: {first: 80}}}", `policy.yaml:1: pools.ci.tcp: is a mapping; wanted is something like 20000-24999, 26000`},
		{"a strategy", "pools: {ci: {tcp: 80, strategy: best}}", `policy.yaml:1: pools.ci.strategy: "best" is not one; known are random, lowest, next`},
		{"strategies", "pools: {ci: {tcp: 80, strategy: [next]}}", `policy.yaml:1: pools.ci.strategy: is a list; wanted is a word like lowest`},
		{"a kind of ports", "pools: {ci: {tcp: 80, avoid: [nodeports]}}", `policy.yaml:1: pools.ci.avoid: "nodeports" is not a kind of ports; known are ephemeral, node-ports, assigned`},
		{"avoid nothing", "pools: {ci: {tcp: 80, avoid: }}", `policy.yaml:1: pools.ci.avoid: is nothing; wanted is something like [ephemeral, node-ports], or [] for none`},
		{"no unit", "pools: {ci: {tcp: 80, quarantine: 300}}", `policy.yaml:1: pools.ci.quarantine: is "300"; wanted is a length of time with its unit, like 30s, 5m or 720h`},
		{"negative", "pools: {ci: {tcp: 80, quarantine: -5m}}", "policy.yaml:1: pools.ci.quarantine: -5m is not allowed; allowed are 0s to 720h0m0s"},
		{"few revisions", "history: {revisions: 0}", "policy.yaml:1: history.revisions: 0 is not allowed; allowed are 100 to 100000000"},
		{"many in words", "history: {revisions: many}", `policy.yaml:1: history.revisions: is "many"; a whole number is wanted`},
		{"a number in quotes", "history: {revisions: '1000'}", `policy.yaml:1: history.revisions: is "1000"; a whole number is wanted`},
		{"no revisions", "history: {revisions: }", `policy.yaml:1: history.revisions: is nothing; a whole number is wanted`},
		{"no time", "history: {age: 1s}", "policy.yaml:1: history.age: 1s is not allowed; allowed are 1m0s to 876000h0m0s"},
		{"history's keys", "history: {size: 5}", "policy.yaml:1: history.size: is unknown; known are revisions, age"},
		{"a merge", "pools: {a: &a {tcp: 80}, b: {<<: *a}}", "policy.yaml:1: pools.b.<<: is unknown; known are protocols (tcp, udp, sctp, dccp, udplite), strategy, avoid, quarantine"},
		{
			"all at once, in the order of lines", "history: {age: soon}\npools:\n  ci: {tcp: 0}\n  X:\n",
			`policy.yaml:1: history.age: is "soon"; wanted is a length of time with its unit, like 30s, 5m or 720h
policy.yaml:3: pools.ci.tcp: "0" is no port and no range; allowed are 1 to 65535, as in 20000-24999, 26000
policy.yaml:4: pools: "X" is not a name; allowed are 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter first`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := policyfile.Parse("policy.yaml", []byte(tt.text))
			if err == nil {
				t.Fatalf("no error; got %+v", got)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Error(diff)
			}
			var one *policyfile.Error
			if !errors.As(err, &one) || one.File != "policy.yaml" || one.Line == 0 {
				t.Errorf("programs read %+v", one)
			}
			if diff := cmp.Diff(registry.Settings{}, got); diff != "" {
				t.Errorf("beside the error: %s", diff)
			}
		})
	}
}

func TestBounds(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"errors", strings.Repeat("x: 1\n", 10_000), "policy.yaml:21: there are 9980 more errors from here on"},
		{"size", strings.Repeat("#", 1<<20+1), "policy.yaml: has more than 1048576 bytes; a policy file has some hundred"},
		{"depth", strings.Repeat("[", 20_000), "policy.yaml: is not YAML: exceeded max depth of 10000"},
		{"a long word", "pools: {ci: {tcp: " + strings.Repeat("9", 5000) + "}}", "…"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := policyfile.Parse("policy.yaml", []byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want %s", err, tt.want)
			}
			if n := len(err.Error()); n > 4000 {
				t.Errorf("the error has %d bytes", n)
			}
		})
	}
}

// The example has every key that there is.
func TestExample(t *testing.T) {
	s, err := policyfile.Load("../../examples/policy/policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range s.Pools {
		names = append(names, p.Name)
	}
	if diff := cmp.Diff([]string{"default", "ci", "db"}, names); diff != "" {
		t.Error(diff)
	}
	want := registry.PoolPorts{Ranges: []registry.PortRange{{First: 5432, Last: 5499}, {First: 27017, Last: 27099}}}
	if diff := cmp.Diff(want, s.Pools[2].Ports[registry.TCP]); diff != "" {
		t.Error(diff)
	}
	if s.History != (registry.History{Revisions: 200_000, Age: 720 * time.Hour}) {
		t.Errorf("history %+v", s.History)
	}
}

// The manual page's example is one, and the page names every key that the parser does.
func TestPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/man/portd-policy.5")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.ReplaceAll(string(text), `\-`, "-")
	_, example, _ := strings.Cut(page, "\n.nf\n")
	example, _, ok := strings.Cut(example, "\n.fi\n")
	s, err := policyfile.Parse("example", []byte(example))
	if !ok || err != nil || len(s.Pools) != 3 || s.History == (registry.History{}) {
		t.Errorf("%+v, %v of\n%s", s, err, example)
	}
	for _, wrong := range []string{"x: 1", "pools: {ci: {x: 1}}", "history: {x: 1}"} {
		_, err := policyfile.Parse("", []byte(wrong))
		_, known, ok := strings.Cut(err.Error(), "known are ")
		if !ok {
			t.Fatal(err)
		}
		known = strings.NewReplacer("protocols (", "", ")", "").Replace(known)
		for key := range strings.SplitSeq(known, ", ") {
			if !strings.Contains(page, "\n.B "+key+"\n") && !strings.Contains(page, key+` ", "`) && !strings.Contains(page, `", " `+key) && !strings.Contains(page, "\n.BR "+key+" ") {
				t.Errorf("the page does not name %s", key)
			}
		}
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.yaml")
	if _, err := policyfile.Load(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, []byte("pools: {ci: {tcp: 0}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := policyfile.Load(path); err == nil || !strings.HasPrefix(err.Error(), path+":1: ") {
		t.Errorf("a wrong file: %v", err)
	}
	if _, err := policyfile.Load(t.TempDir()); err == nil {
		t.Error("a directory is a policy file")
	}
}
