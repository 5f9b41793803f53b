package main

import (
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// heedMemoryLimit makes Go collect garbage in time where portd's memory cgroup has a limit: by itself Go lets the heap double before it
// looks, and the kernel kills. A quarter is left for what is not Go's, which is the kernel's memory for portd's sockets
// mostly. GOMEMLIMIT in the environment is obeyed in its place.
func heedMemoryLimit() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return
	}
	if limit := memoryLimit(string(groups), os.ReadFile); limit < math.MaxInt64 {
		debug.SetMemoryLimit(limit / 4 * 3)
	}
}

// memoryLimit is the least of the limits that bind a process in these cgroups, /proc/PID/cgroup (cgroups(7)), in bytes;
// math.MaxInt64 where there is none.
func memoryLimit(groups string, read func(string) ([]byte, error)) int64 {
	least := int64(math.MaxInt64)
	for line := range strings.Lines(groups) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		var top, file string
		switch {
		case f[0] == "0" && f[1] == "":
			top, file = "/sys/fs/cgroup", "memory.max"
		case f[1] == "memory":
			top, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		for dir := path.Clean("/" + f[2]); ; dir = path.Dir(dir) {
			// A container may see its own group as the top one, and its path all the same: then only the last of these is there.
			if text, err := read(path.Join(top, dir, file)); err == nil {
				if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil { // else it is "max"
					least = min(least, n)
				}
			}
			if dir == "/" {
				break
			}
		}
	}
	if least >= 1<<60 { // how the first version says that there is none
		return math.MaxInt64
	}
	return least
}
