package daemon_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/localports"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// administrator writes ip_local_reserved_ports of the tests' network namespace, which no other test minds.
func administrator(t *testing.T, text string) {
	t.Helper()
	nstest.Need(t)
	if err := os.WriteFile(localports.Path, []byte(text+"\n"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(localports.Path, []byte("\n"), 0); err != nil {
			t.Error(err)
		}
	})
}

func wantLocal(t *testing.T, want string) {
	t.Helper()
	f, err := os.Open(localports.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	n, err := unix.Read(int(f.Fd()), buf)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(bytes.TrimSpace(buf[:n])); got != want {
		t.Errorf("ip_local_reserved_ports is %q, want %q", got, want)
	}
}

func record(t testing.TB, c *client.Client, name string, endpoints ...string) *pb.Reservation {
	t.Helper()
	s := spec(t, endpoints...)
	s.Mode = pb.Mode_MODE_RECORDED
	got, err := c.Reservations.Reserve(t.Context(), &pb.ReserveRequest{Name: name, Spec: s})
	if err != nil {
		t.Fatalf("record %v: %v", endpoints, err)
	}
	return got.GetReservation()
}

// A recorded port is in the sysctl when it is answered, and a held one is when the next is.
func TestLocalPorts(t *testing.T) {
	administrator(t, "22,9001")
	d, c := start(t)
	reserve(t, c, "held", "tcp/8443", "udp/8443", "tcp/127.0.0.1:8445")
	record(t, c, "web", "tcp,udp/9000-9002")
	wantLocal(t, "22,8443,8445,9000-9002")
	chosen := &pb.EndpointSpec{Protocols: []pb.Protocol{pb.Protocol_PROTOCOL_TCP}, Choice: &pb.EndpointSpec_Any{Any: &pb.AnyPorts{
		Within: &pb.PortRange{First: 7777, Last: 7777},
	}}}
	if _, err := c.Reservations.Reserve(t.Context(), &pb.ReserveRequest{Name: "chosen", Spec: &pb.ReservationSpec{
		Mode: pb.Mode_MODE_RECORDED, Endpoints: []*pb.EndpointSpec{chosen},
	}}); err != nil {
		t.Fatal(err)
	}
	wantLocal(t, "22,7777,8443,8445,9000-9002")
	for _, name := range []string{"held", "chosen"} {
		if _, err := c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: name}); err != nil {
			t.Fatal(err)
		}
	}
	record(t, c, "", "sctp/7") // of whatever protocol
	wantLocal(t, "7,22,9000-9002")
	d.Stop(t)
	wantLocal(t, "22,9001")
	d.Restart(t)
	record(t, c, "more", "tcp/8444")
	wantLocal(t, "7,22,8444,9000-9002")
}

// portd is killed, and the next one gives back what the last one had added and no longer has.
func TestLocalPortsAfterAKill(t *testing.T) {
	administrator(t, "22")
	clean(t)
	d := portdtest.New(t)
	p := portd(t, d, "")
	p.begin(t)
	c := d.Client(t)
	record(t, c, "web", "tcp/9000")
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.ends(t)
	wantLocal(t, "22,9000")

	administrator(t, "22,80,9000")
	p = portd(t, d, "")
	p.begin(t)
	if _, err := c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: "web"}); err != nil {
		t.Fatal(err)
	}
	record(t, c, "other", "tcp/9001")
	wantLocal(t, "22,80,9001")
	if err := p.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.ends(t)
	wantLocal(t, "22,80")
	if _, err := os.Stat(filepath.Join(d.State, "local-ports")); !os.IsNotExist(err) {
		t.Errorf("the record after everything was given back: %v", err)
	}
}

// A portd that may not write the sysctl records all the same, and status says what is weaker.
func TestLocalPortsDenied(t *testing.T) {
	administrator(t, "22")
	clean(t)
	d := portdtest.New(t)
	p := portd(t, d, "")
	p.SysProcAttr = nstest.As(t, 65534, 65534)
	notify, err := filepath.Glob(filepath.Join(d.Dir, "notify*"))
	if err != nil || len(notify) != 1 {
		t.Fatal(notify, err)
	}
	for _, path := range []string{filepath.Dir(p.Path), d.Dir, notify[0]} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	p.begin(t)
	// By REST, for the Go client trusts no portd of another user's.
	rest := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", d.Socket)
	}}}
	const body = `{"spec": {"mode": "MODE_RECORDED", "endpoints": [{"protocols": ["PROTOCOL_TCP"], "exact": {"first": 9000}}]}}`
	recorded, err := rest.Post("http://portd/v1/reservations", "application/json", strings.NewReader(body))
	if err != nil || recorded.StatusCode != http.StatusOK {
		t.Fatalf("record: %v %v", recorded, err)
	}
	recorded.Body.Close()
	answer, err := rest.Get("http://portd/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var st struct {
		KernelFeatures []struct {
			Name, Consequence string
			Available         bool
		}
	}
	if err := json.NewDecoder(answer.Body).Decode(&st); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, f := range st.KernelFeatures {
		if f.Name == "local-reserved-ports" {
			found = !f.Available && strings.Contains(f.Consequence, "CAP_NET_ADMIN")
		}
	}
	if !found {
		t.Errorf("status says %+v", st)
	}
	wantLocal(t, "22")
}
