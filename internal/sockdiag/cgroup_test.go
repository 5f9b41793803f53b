package sockdiag

import (
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

const id = "3f2a91c0d5e7b8a64f10293847566c7d8e9fa0b1c2d3e4f5061728394a5b6c7d"

func TestCgroupOf(t *testing.T) {
	for text, want := range map[string]string{
		"":                                 "",
		"0::/system.slice/nginx.service\n": "/system.slice/nginx.service",
		"0::/system.slice/nginx.service (deleted)\n": "/system.slice/nginx.service",
		"0::/\n":               "/",
		"0::/../../odd:name\n": "/../../odd:name",
		"9:name=systemd:/\n4:memory:/jobs/one\n0::/\n":                          "/jobs/one",
		"9:pids:/a\n1:name=systemd:/system.slice/x.service\n0::/\n":             "/system.slice/x.service",
		"9:pids:/a\n1:name=systemd:/b\n0::/c\n":                                 "/c",
		"4:cpu,cpuacct:/docker/" + id + "\n1:name=systemd:/docker/" + id + "\n": "/docker/" + id,
		"no colons\n0::no slash\n":                                              "",
		"0::/a\x1b[2J\n":                                                        "/a?[2J",
	} {
		if got := cgroupOf(text); got != want {
			t.Errorf("cgroupOf(%q) = %q, want %q", text, got, want)
		}
	}
}

// The shapes are those of the runtimes' own code: systemd's and cgroupfs's of each, of versions 1 and 2.
func TestContainerAndUnit(t *testing.T) {
	type place struct{ Container, Unit string }
	const (
		podSlice = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a1b.slice"
		uid      = "12345678-90ab-cdef-1234-567890abcdef"
	)
	for cgroup, want := range map[string]place{
		"":                                     {},
		"/":                                    {},
		"/init.scope":                          {"", "init.scope"},
		"/system.slice/nginx.service":          {"", "nginx.service"},
		"/system.slice/nginx.service/worker/1": {"", "nginx.service"},
		"/system.slice/system-getty.slice/getty@tty1.service":                                        {"", "getty@tty1.service"},
		"/system.slice/_cpu.service":                                                                 {"", "cpu.service"},
		"/user.slice/user-1000.slice/session-3.scope":                                                {"", "session-3.scope"},
		"/user.slice/user-1000.slice/user@1000.service/app.slice/web.service":                        {"", "web.service"},
		"/user.slice/user-1000.slice/user@1000.service/init.scope":                                   {"", "user@1000.service"},
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope/container": {id, "libpod-" + id + ".scope"},
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-conmon-" + id + ".scope":    {"", "libpod-conmon-" + id + ".scope"},
		"/jobs/nginx.service": {},
		"/.service":           {},
		"/.slice/x.service":   {},
		"/docker/" + id:       {id, ""},
		"/docker/" + id + "/system.slice/nginx.service":                                           {id, ""},
		"/docker/buildkit/abc":                                                                    {},
		"/system.slice/docker-" + id + ".scope":                                                   {id, "docker-" + id + ".scope"},
		"/system.slice/docker.service":                                                            {"", "docker.service"},
		"/system.slice/nerdctl-" + id + ".scope":                                                  {id, "nerdctl-" + id + ".scope"},
		"/libpod_parent/libpod-" + id:                                                             {id, ""},
		"/libpod_parent/libpod-" + id + "/libpod-payload-" + id:                                   {id, ""},
		"/machine.slice/libpod-" + id + ".scope/container":                                        {id, "libpod-" + id + ".scope"},
		podSlice + "/cri-containerd-" + id + ".scope":                                             {id, "cri-containerd-" + id + ".scope"},
		podSlice + "/crio-" + id + ".scope":                                                       {id, "crio-" + id + ".scope"},
		podSlice + "/crio-conmon-" + id + ".scope":                                                {"", "crio-conmon-" + id + ".scope"},
		podSlice + "/docker-" + id + ".scope":                                                     {id, "docker-" + id + ".scope"},
		"/kubepods/burstable/pod" + uid + "/" + id:                                                {id, ""},
		"/kubepods/pod" + uid + "/crio-" + id:                                                     {id, ""},
		"/system.slice/containerd.service/kubepods-besteffort-pod0a1b.slice:cri-containerd:" + id: {id, "containerd.service"},
		// kind: a cluster in a container. The innermost is where the process is.
		"/docker/" + strings.Repeat("0", 64) + "/kubelet" + podSlice + "/cri-containerd-" + id + ".scope": {id, ""},
		// As in a container whose groups are seen from another one.
		"/../" + id:                      {},
		"/jobs/" + id:                    {},
		"/docker/" + strings.ToUpper(id): {},
	} {
		if diff := cmp.Diff(want, place{containerOf(cgroup), unitOf(cgroup)}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", cgroup, diff)
		}
	}
}

func FuzzCgroup(f *testing.F) {
	f.Add("0::/system.slice/docker-" + id + ".scope\n")
	f.Add("9:pids:/\n1:name=systemd:/user.slice/user@1.service/_x.service (deleted)\n0::/\n")
	f.Add("0::/kubepods/a.slice:cri-containerd:" + id)
	f.Add("::/\x1b//.slice/.service")
	f.Fuzz(func(t *testing.T, text string) {
		path := cgroupOf(text)
		if path != "" && path[0] != '/' || strings.ContainsFunc(path, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("the group of %q is %q", text, path)
		}
		if c := containerOf(path); c != "" && (!isContainerID(c) || !strings.Contains(path, c)) {
			t.Errorf("the container of %q is %q", path, c)
		}
		if u := unitOf(path); strings.Contains(u, "/") || !strings.Contains(path, u) || u != "" && !isUnit(u) {
			t.Errorf("the unit of %q is %q", path, u)
		}
	})
}
