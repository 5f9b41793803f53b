package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// BenchmarkStart is a whole process from start to end: portctl whois without a portd, beside a Go program that prints a line.
func BenchmarkStart(b *testing.B) {
	dir := b.TempDir()
	hello := filepath.Join(dir, "hello.go")
	if err := os.WriteFile(hello, []byte("package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(\"hello\") }\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, bb := range []struct {
		name, source string
		args         []string
	}{
		{"hello", hello, nil},
		{"whois", ".", []string{"whois", "443"}},
	} {
		program := filepath.Join(dir, bb.name)
		build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", program, bb.source)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			b.Fatalf("build %s: %v\n%s", bb.source, err, out)
		}
		b.Run(bb.name, func(b *testing.B) {
			for b.Loop() {
				cmd := exec.Command(program, bb.args...)
				cmd.Env = []string{"PORTD_SOCKET=" + filepath.Join(dir, "portd.sock")}
				if err := cmd.Run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
