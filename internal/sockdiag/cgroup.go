package sockdiag

import (
	"slices"
	"strings"
)

// cgroupOf finds the process's control group in a /proc/PID/cgroup: lines of "hierarchy:controllers:path" (cgroups(7)). Where
// there are several hierarchies, as version 1 has, it is the unified one, else systemd's, else the first in which the process
// is not at the root: what made the groups did so in that one at least.
func cgroupOf(text string) (path string) {
	best := -1
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") {
			continue
		}
		// A group can be removed before what it was made for is gone.
		at := strings.TrimSuffix(parts[2], " (deleted)")
		rank := 0
		switch {
		case at == "/":
		case parts[0] == "0" && parts[1] == "":
			rank = 3
		case parts[1] == "name=systemd":
			rank = 2
		default:
			rank = 1
		}
		if rank > best {
			best, path = rank, at
		}
	}
	return printable(path)
}

// scopes are what runtimes write before the id of a container where they name its control group.
var scopes = []string{"docker-", "libpod-payload-", "libpod-", "cri-containerd-", "crio-", "nerdctl-"}

// containerOf is the id of the container that a control group is of: the innermost of Docker's, Podman's, containerd's or
// CRI-O's, by systemd's names (docker-ID.scope) or by the plain ones (/docker/ID, /kubepods/…/ID). It is empty where there is
// none; the processes that look after a container (libpod-conmon-ID.scope) are not in it.
func containerOf(cgroup string) string {
	parts := strings.Split(cgroup, "/")
	for i, part := range slices.Backward(parts) {
		// containerd that is told of systemd only by half: slice:cri-containerd:ID.
		if at := strings.LastIndexByte(part, ':'); at >= 0 && strings.HasSuffix(part[:at], ":cri-containerd") {
			part = "cri-containerd-" + part[at+1:]
		}
		id, named := strings.TrimSuffix(part, ".scope"), false
		for _, scope := range scopes {
			if rest, ok := strings.CutPrefix(id, scope); ok {
				id, named = rest, true
				break
			}
		}
		if isContainerID(id) && (named || slices.ContainsFunc(parts[:i], namesContainers)) {
			return id
		}
	}
	return ""
}

// namesContainers says whether the groups under one of this name are containers by their bare ids.
func namesContainers(group string) bool {
	return group == "docker" || group == "libpod_parent" || strings.HasPrefix(group, "kubepods")
}

// isContainerID says whether s is an id as all of the runtimes make them: 32 bytes in lower-case hexadecimal.
func isContainerID(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }

// unitOf is the systemd unit that a control group is of: the first part below the slices (systemd.slice(5)), and under a
// user's manager that user's unit. It is empty where systemd did not make the group.
func unitOf(cgroup string) string {
	unit, below := firstUnit(strings.Split(cgroup, "/"))
	if strings.HasPrefix(unit, "user@") {
		if own, _ := firstUnit(below); own != "" && own != "init.scope" { // that one is the manager itself
			return own
		}
	}
	return unit
}

// firstUnit is the unit after leading slices, and what is below it.
func firstUnit(parts []string) (unit string, below []string) {
	for i, part := range parts {
		// systemd writes an underscore before a name that the kernel could take for a file of its own.
		switch name := strings.TrimPrefix(part, "_"); {
		case name == "" || len(name) > len(".slice") && strings.HasSuffix(name, ".slice"):
		case isUnit(name):
			return name, parts[i+1:]
		default:
			return "", nil
		}
	}
	return "", nil
}

// isUnit says whether a name is that of a unit that can have processes (systemd.unit(5)).
func isUnit(name string) bool {
	for _, kind := range []string{".service", ".scope", ".socket", ".mount", ".swap"} {
		if len(name) > len(kind) && strings.HasSuffix(name, kind) {
			return true
		}
	}
	return false
}
