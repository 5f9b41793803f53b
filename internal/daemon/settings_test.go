package daemon_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/daemon"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// poolNames are those of the pools, and the file that they are from.
func poolNames(t *testing.T, c *client.Client) (names []string, file string) {
	t.Helper()
	answer, err := c.Ports.ListPools(t.Context(), &pb.ListPoolsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range answer.GetPools() {
		names = append(names, p.GetName())
	}
	return names, answer.GetPolicyFile()
}

func policyStatus(t *testing.T, c *client.Client) *pb.PolicyStatus {
	t.Helper()
	st, err := c.Daemon.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return st.GetPolicy()
}

// Pools come and go with the file. One that is wrong changes nothing, and the status says what is wrong with it.
func TestReload(t *testing.T) {
	clean(t)
	d := portdtest.Start(t)
	c := d.Client(t)
	first := policyStatus(t, c)
	if first.GetFile() != d.Policy || first.GetLoadTime() == nil || first.GetError() != "" {
		t.Errorf("at first the status has %v", first)
	}
	for _, tt := range []struct {
		text  string
		names []string
		wrong string
	}{
		{"pools: {ci: {tcp: 20000-24999}, b: {udp: 53}}", []string{"default", "b", "ci"}, ""},
		{"pools:\n  ci: {tcp: 24999-20000}\n", []string{"default", "b", "ci"}, d.Policy + ":2: pools.ci.tcp: 24999-20000 runs backwards; write 20000-24999"},
		{"pools: {a: {udp: 53}}", []string{"default", "a"}, ""},
		{"", []string{"default"}, ""},
	} {
		before := policyStatus(t, c)
		d.Reload(t, tt.text)
		names, file := poolNames(t, c)
		if diff := cmp.Diff(tt.names, names); diff != "" || file != d.Policy {
			t.Errorf("%q: from %s: %s", tt.text, file, diff)
		}
		st := policyStatus(t, c)
		if st.GetError() != tt.wrong || (st.GetErrorTime() == nil) != (tt.wrong == "") {
			t.Errorf("%q: the status has %v", tt.text, st)
		}
		if newer := st.GetLoadTime().AsTime().After(before.GetLoadTime().AsTime()); newer != (tt.wrong == "") {
			t.Errorf("%q: loaded at %v, before that at %v", tt.text, st.GetLoadTime().AsTime(), before.GetLoadTime().AsTime())
		}
	}
	if err := os.Remove(d.Policy); err != nil {
		t.Fatal(err)
	}
	d.Again()
	if st := policyStatus(t, c); !strings.Contains(st.GetError(), "no such file") {
		t.Errorf("the file that was asked for is gone, and the status has %v", st)
	}
}

// A policy that is wrong at the start is no policy to start by.
func TestWrongPolicy(t *testing.T) {
	clean(t)
	d := portdtest.New(t)
	for text, want := range map[string]string{
		"pools: {ci: {}}\npool: {}\n": d.Policy + ":2: pool: is unknown",
		"pools:\n\t":                  d.Policy + ":2: is not YAML",
	} {
		if err := os.WriteFile(d.Policy, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := daemon.Run(t.Context(), daemon.Config{Socket: d.Socket, StateDir: d.State, Policy: d.Policy})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	err := daemon.Run(t.Context(), daemon.Config{Socket: d.Socket, StateDir: d.State, Policy: filepath.Join(d.Dir, "other")})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := os.Stat(d.State); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it has begun: %v", err)
	}
}

// The file of the user's own place need not be there.
func TestPolicyPlace(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root's policy file is /etc/portd/policy.yaml, which is no test's; run this as an ordinary user")
	}
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	file := filepath.Join(dir, "portd", "policy.yaml")
	if got, err := daemon.Check(daemon.Config{}); err != nil || got != file+" is not there: portd goes by its own defaults" {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("pools: {ci: {tcp: 80}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := daemon.Check(daemon.Config{}); err != nil || got != file+" is right, with 1 pool" {
		t.Errorf("%q, %v", got, err)
	}
}

// A real portd at a real signal, with a service manager that listens.
func TestHangup(t *testing.T) {
	clean(t)
	d := portdtest.New(t)
	p := portd(t, d, "")
	p.begin(t)
	c := d.Client(t)
	for i, text := range []string{"pools: {ci: {tcp: 80}}", "pools: [", "pools: {ci: {tcp: 80}, db: {tcp: 81}}"} {
		if err := os.WriteFile(d.Policy, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if said := p.says(t, "RELOADING=1"); !regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=\d+\n$`).MatchString(said) {
			t.Errorf("portd said %q", said)
		}
		p.said(t, "READY=1")
		want := [][]string{{"default", "ci"}, {"default", "ci"}, {"default", "ci", "db"}}[i]
		if names, _ := poolNames(t, c); !cmp.Equal(names, want) {
			t.Errorf("%s: the pools are %v, want %v", text, names, want)
		}
	}
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.said(t, "STOPPING=1")
	if code := p.ends(t); code != 0 {
		t.Errorf("exit %d", code)
	}
	for _, want := range []string{`"msg":"policy reloaded"`, `"msg":"the policy is not reloaded; what was loaded before still applies","err":"` + d.Policy + `:1: is not YAML`} {
		if !strings.Contains(p.log.String(), want) {
			t.Errorf("the log has no %s: %s", want, &p.log)
		}
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "policy.yaml")
	for _, tt := range []struct {
		text   string
		code   int
		stdout string
		stderr string
	}{
		{"pools: {ci: {tcp: 80}, db: {tcp: 81}}", 0, file + " is right, with 2 pools\n", ""},
		{"", 0, file + " is right, with 0 pools\n", ""},
		{"pool:\nhistry:\n", 1, "", fmt.Sprintf("%[1]s:1: pool: is unknown; known are pools, history\n%[1]s:2: histry: is unknown; known are pools, history\n", file)},
	} {
		if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		var stdout, stderr strings.Builder
		cmd := exec.Command(binary(t), "--check", "--policy", file)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != tt.code || stdout.String() != tt.stdout || stderr.String() != tt.stderr {
			t.Errorf("%q: exit %d (%v)\n%s%s", tt.text, code, err, stdout.String(), stderr.String())
		}
	}
}

// A choice goes by one policy or by the other, also while they change.
func TestReloadUnderLoad(t *testing.T) {
	d, c := start(t)
	const a, b = "pools: {ci: {tcp: 20000-20099, quarantine: 0}}", "pools: {ci: {tcp: 21000-21099, quarantine: 0}}"
	d.Reload(t, a)
	ep := &pb.EndpointSpec{Protocols: []pb.Protocol{pb.Protocol_PROTOCOL_TCP}, Choice: &pb.EndpointSpec_Any{Any: &pb.AnyPorts{Pool: "ci", Count: 2}}}
	var all errgroup.Group
	for range 4 {
		all.Go(func() error {
			for range 25 {
				answer, err := c.Reservations.Reserve(t.Context(), &pb.ReserveRequest{Spec: &pb.ReservationSpec{Endpoints: []*pb.EndpointSpec{ep}}})
				if err != nil {
					return err
				}
				res := answer.GetReservation()
				if p := res.GetAssigned()[0].GetEndpoint().GetPorts(); p.GetFirst()/100 != 200 && p.GetFirst()/100 != 210 || p.GetLast() != p.GetFirst()+1 {
					return fmt.Errorf("the ports are %v", p)
				}
				if _, err := c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: res.GetId()}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for range 10 {
		d.Reload(t, b)
		d.Reload(t, a)
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
}
