package main

import (
	"io/fs"
	"math"
	"testing"
)

func TestMemoryLimit(t *testing.T) {
	for _, tt := range []struct {
		name, groups string
		files        map[string]string
		want         int64
	}{
		{"none", "0::/a/b\n", map[string]string{"/sys/fs/cgroup/a/b/memory.max": "max\n"}, math.MaxInt64},
		{"own", "0::/a/b\n", map[string]string{"/sys/fs/cgroup/a/b/memory.max": "1000\n", "/sys/fs/cgroup/a/memory.max": "max\n"}, 1000},
		{"of a parent", "0::/a/b\n", map[string]string{"/sys/fs/cgroup/a/b/memory.max": "1000\n", "/sys/fs/cgroup/a/memory.max": "900\n"}, 900},
		{"seen from inside", "0::/../x\n", map[string]string{"/sys/fs/cgroup/memory.max": "800\n"}, 800},
		{"version 1", "3:cpu:/z\n4:memory:/a\n0::/\n", map[string]string{"/sys/fs/cgroup/memory/a/memory.limit_in_bytes": "700\n"}, 700},
		{"version 1, none", "4:memory:/a\n", map[string]string{"/sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, math.MaxInt64},
		{"nonsense", "x\n:\n", nil, math.MaxInt64},
	} {
		got := memoryLimit(tt.groups, func(path string) ([]byte, error) {
			if text, ok := tt.files[path]; ok {
				return []byte(text), nil
			}
			return nil, fs.ErrNotExist
		})
		if got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}
