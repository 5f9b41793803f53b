package localports

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// A record is what portd remembers of its own entries, for after a SIGKILL. It is about this boot's kernel and one network
// namespace, and worth nothing beyond.
type record struct {
	boot, netns string
	// sure are there unless somebody has written the sysctl anew; maybe are those of the write that was about to happen.
	sure, maybe portSet
}

const recordMagic = "portd's own entries in net.ipv4.ip_local_reserved_ports, version 1"

func (r *record) String() string {
	return fmt.Sprintf("%s\nboot %s\nnetns %s\nsure %s\nmaybe %s\n", recordMagic, r.boot, r.netns, &r.sure, &r.maybe)
}

func parseRecord(text string) (*record, error) {
	lines := strings.Split(text, "\n")
	if lines[0] != recordMagic {
		return nil, fmt.Errorf("line 1 is %.80q, not %q", lines[0], recordMagic)
	}
	r := &record{}
	fields := []struct {
		key string
		set func(string) error
	}{
		{"boot", func(v string) error { r.boot = v; return nil }},
		{"netns", func(v string) error { r.netns = v; return nil }},
		{"sure", r.sure.parse},
		{"maybe", r.maybe.parse},
	}
	if len(lines) != len(fields)+2 || lines[len(lines)-1] != "" {
		return nil, fmt.Errorf("%d lines, not %d", len(lines)-1, len(fields)+1)
	}
	for i, f := range fields {
		value, ok := strings.CutPrefix(lines[i+1], f.key+" ")
		if !ok {
			return nil, fmt.Errorf("line %d is %.40q, not %s", i+2, lines[i+1], f.key)
		}
		if err := f.set(value); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+2, err)
		}
	}
	return r, nil
}

func (s *portSet) parse(text string) error {
	p, err := parsePorts(text)
	if err == nil {
		*s = *p
	}
	return err
}

// load is the record in a file, without entries where there is none.
func load(path string) (*record, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &record{}, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := parseRecord(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// save replaces the file whole; without entries there is none. Nothing is synced to the disk: what a crash of the host could
// take from the file it has taken from the kernel, too.
func (r *record) save(path string) error {
	if r.sure.empty() && r.maybe.empty() {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	next := path + ".new"
	err := os.WriteFile(next, []byte(r.String()), 0o600)
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		_ = os.Remove(next) // it may be that there is nothing
	}
	return err
}
