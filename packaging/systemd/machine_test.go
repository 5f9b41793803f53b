package systemd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A machine is namespaces in which a systemd is process 1, with portd's unit and next to nothing else.
type machine struct {
	dir string // has the binaries
	pid int    // of process 1, as it is called out here
}

// initScript makes the namespaces' file systems and becomes systemd. Its arguments are the directory of the units, and systemd.
const initScript = `set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /etc/systemd
mount -t tmpfs tmpfs /sys/fs/cgroup && umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
mkdir /run/units
cp "$1"/units/* /run/units/
export container=portd SYSTEMD_UNIT_PATH=/run/units SYSTEMD_GENERATOR_PATH=/run/none SYSTEMD_LOG_TARGET=console
exec "$2" --system --unit=nothing.target
`

// nothing is all that the targets do.
const nothing = "[Unit]\nDefaultDependencies=no\n"

// boot starts a machine, which ends with the test.
func boot(t *testing.T) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a systemd of its own takes root")
	}
	systemd := ""
	for _, path := range []string{"/usr/lib/systemd/systemd", "/lib/systemd/systemd"} {
		if _, err := os.Stat(path); err == nil {
			systemd = path
		}
	}
	if systemd == "" {
		t.Skip("there is no systemd here (apt-get install systemd)")
	}
	for _, tool := range []string{"unshare", "nsenter", "systemctl", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("there is no %s here", tool)
		}
	}
	group := controlGroup(t)

	m := &machine{dir: build(t)}
	units := filepath.Join(m.dir, "units")
	unit, err := os.ReadFile("portd.service")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		// There is no journal in there.
		"portd.service":  strings.ReplaceAll(string(unit), "/usr/bin/", m.dir+"/") + "[Service]\nStandardError=append:" + m.dir + "/log\n",
		"nothing.target": nothing, "sysinit.target": nothing, "basic.target": nothing, "shutdown.target": nothing, "network.target": nothing,
		"multi-user.target": nothing,
	} {
		if err := errors.Join(os.MkdirAll(units, 0o755), os.WriteFile(filepath.Join(units, name), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	// The group is joined before its namespace is made, so that it is the root in there.
	cmd := exec.Command("/bin/sh", "-c", `echo $$ >"$1"/cgroup.procs && shift && exec "$@"`, "sh", group,
		"unshare", "--pid", "--mount", "--net", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child", "/bin/sh", "-c", initScript, "sh", m.dir, systemd)
	console, err := os.Create(filepath.Join(m.dir, "console"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Skipf("no namespaces can be made here: %v", err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			for _, name := range []string{"console", "log"} {
				said, _ := os.ReadFile(filepath.Join(m.dir, name))
				t.Logf("%s:\n%s", name, said[max(0, len(said)-10000):])
			}
		}
		console.Close()
	})
	for until := time.Now().Add(20 * time.Second); ; {
		if m.pid = onlyChild(cmd.Process.Pid); m.pid != 0 {
			if out, err := m.try("systemctl", "is-system-running"); err == nil || strings.Contains(out, "degraded") {
				return m
			}
		}
		select {
		case <-ended:
			said, _ := os.ReadFile(console.Name())
			t.Skipf("no systemd can be started in namespaces here: %s", said)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(until) {
			t.Fatal("systemd does not come up")
		}
	}
}

// controlGroup makes a group for the machine in the unified hierarchy, below the one of this process.
func controlGroup(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	at := ""
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); strings.Contains(line, " - cgroup2 ") && at == "" {
			at = f[4]
		}
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(own)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok && at != "" {
			at = filepath.Join(at, path)
		}
	}
	if at == "" {
		t.Skip("there is no unified cgroup hierarchy here")
	}
	group := filepath.Join(at, fmt.Sprintf("portd-test-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Skipf("no control group can be made here: %v", err)
	}
	t.Cleanup(func() { removeGroup(t, group) })
	return group
}

// removeGroup removes the groups of a machine whose processes are just ending.
func removeGroup(t *testing.T, group string) {
	for until := time.Now().Add(10 * time.Second); ; {
		var dirs []string
		_ = filepath.WalkDir(group, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		var err error
		for i := len(dirs) - 1; i >= 0; i-- {
			err = os.Remove(dirs[i])
		}
		if err == nil {
			return
		}
		if time.Now().After(until) {
			t.Errorf("processes of the machine are left: %v", err)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// build makes portd and portctl, in a directory whose name fits into a socket's.
func build(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "portd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "build", "-o", dir+"/", "../../cmd/portd", "../../cmd/portctl").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// onlyChild is the child of a process that has one, or 0.
func onlyChild(pid int) int {
	out, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0
	}
	child, _ := strconv.Atoi(strings.TrimSpace(string(out)))
	return child
}

// command is a command in the machine.
func (m *machine) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--target", strconv.Itoa(m.pid), "--mount", "--pid", "--net", "--cgroup", "--"}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+m.dir+":"+os.Getenv("PATH"))
	return cmd
}

func (m *machine) try(args ...string) (string, error) {
	out, err := m.command(args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (m *machine) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := m.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return strings.TrimSpace(stdout.String())
}

// property is one of portd's unit.
func (m *machine) property(t *testing.T, name string) string {
	t.Helper()
	return m.run(t, "systemctl", "show", "--value", "-p", name, "portd")
}

// await waits until the unit is active with another main process.
func (m *machine) await(t *testing.T, notPID string) (pid string) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until); time.Sleep(2 * time.Millisecond) {
		if pid := m.property(t, "MainPID"); pid != notPID && pid != "0" && m.property(t, "ActiveState") == "active" {
			return pid
		}
	}
	t.Fatal("portd does not come back")
	return ""
}
