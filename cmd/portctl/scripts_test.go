package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Scripts run at the same time and in one network namespace: a port that two of them bind is a failure now and then.
func TestScriptsBindPortsOfTheirOwn(t *testing.T) {
	t.Parallel()
	scripts, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatal(len(scripts), err)
	}
	binds := regexp.MustCompile(`^(?:start|exec) .*\b(?:portctl (?:reserve|run)|stranger) `)
	nothing := regexp.MustCompile(` --(?:netns|record-only) |ip netns exec |test \$\? = 2`) // usage error: nothing is bound
	port := regexp.MustCompile(`\b(?:tcp|udp)[/ ](?:\S*:)?(\d+)\b`)
	of := make(map[string]string)
	for _, script := range scripts {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if !binds.MatchString(line) || nothing.MatchString(line) {
				continue
			}
			for _, found := range port.FindAllStringSubmatch(line, -1) {
				if other, taken := of[found[1]]; taken && other != script {
					t.Errorf("%s and %s both bind port %s", other, script, found[1])
				}
				of[found[1]] = script
			}
		}
	}
	if len(of) < 20 {
		t.Errorf("%d ports found in %d scripts", len(of), len(scripts))
	}
}
