package daemon_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/portd/portd/client"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// dial is a client that the caller closes: portd is killed meanwhile.
func dial(t *testing.T, d *portdtest.Daemon) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), client.Options{Socket: d.Socket})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// registryOf is which edition answers.
func registryOf(t *testing.T, c *client.Client) *pb.ServiceRegistryStatus {
	t.Helper()
	st, err := c.Daemon.GetStatus(t.Context(), &pb.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return st.GetServiceRegistry()
}

// describes is what the registry says of a TCP port in its first entry.
func describes(t *testing.T, c *client.Client, port uint32) string {
	t.Helper()
	text, err := lookup(t.Context(), c, port)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func lookup(ctx context.Context, c *client.Client, port uint32) (string, error) {
	got, err := c.Services.LookupServices(ctx, &pb.LookupServicesRequest{
		Query: &pb.LookupServicesRequest_Port{Port: port}, Protocol: pb.Protocol_PROTOCOL_TCP,
	})
	if entries := got.GetLookup().GetEntries(); len(entries) > 0 {
		return entries[0].GetDescription(), err
	}
	return "", err
}

// What was imported and added is there after portd was killed, and so is the edition before.
func TestServicesOutliveAKill(t *testing.T) {
	clean(t)
	d := portdtest.New(t)
	entries := shipped()
	var before *pb.ServiceRegistryStatus
	was := ssh(entries).Description
	life := func(what string, live func(c *client.Client)) {
		t.Helper()
		p := portd(t, d, "")
		p.begin(t)
		c := dial(t, d)
		now := registryOf(t, c)
		if diff := cmp.Diff(before, now, protocmp.Transform()); before != nil && diff != "" {
			t.Errorf("%s: the registry (-before +after the kill):\n%s", what, diff)
		}
		live(c)
		before = registryOf(t, c)
		if err := p.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		p.ends(t)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	life("new", func(c *client.Client) {
		if st := registryOf(t, c); st.GetSource() != "embedded" || st.GetRecords() != uint32(len(entries)) || st.GetPrevious() != nil {
			t.Errorf("a new portd has %v", st)
		}
		_, err := c.Services.AddServices(t.Context(), &pb.AddServicesRequest{Services: []*pb.ServiceEntry{{
			Name: "myapp", Ports: &pb.PortRange{First: 8123}, Protocol: pb.Protocol_PROTOCOL_TCP, Description: "Ours",
		}}, Override: true})
		if err != nil {
			t.Fatal(err)
		}
	})
	life("own", func(c *client.Client) {
		if got := describes(t, c, 8123); got != "Ours" {
			t.Errorf("8123 is %q", got)
		}
		did, err := c.ImportServices(t.Context(), csvOf(t, entries, "Ours as well"), &pb.ImportOptions{Date: "2026-09-01", From: "new.csv"})
		if err != nil || did.GetChanged() != 1 {
			t.Fatalf("%v, %v", did, err)
		}
	})
	life("imported", func(c *client.Client) {
		if st := registryOf(t, c); st.GetDate() != "2026-09-01" || st.GetHostEntries() != 1 || st.GetPrevious().GetSource() != "embedded" {
			t.Errorf("after the import: %v", st)
		}
		if got := describes(t, c, 22); got != "Ours as well" {
			t.Errorf("22 is %q", got)
		}
		if _, err := c.ImportServices(t.Context(), strings.NewReader("<html>no such page</html>"), nil); answer(err) != "InvalidArgument INVALID_ARGUMENT" {
			t.Errorf("an error page: %v", err)
		}
		if _, err := c.Services.UndoImport(t.Context(), &pb.UndoImportRequest{}); err != nil {
			t.Fatal(err)
		}
	})
	life("undone", func(c *client.Client) {
		if got := describes(t, c, 22); got != was {
			t.Errorf("22 is %q", got)
		}
		if st := registryOf(t, c); st.GetSource() != "embedded" || st.GetPrevious().GetDate() != "2026-09-01" {
			t.Errorf("after the undoing: %v", st)
		}
		if got := describes(t, c, 8123); got != "Ours" {
			t.Errorf("8123 is %q", got)
		}
	})
}

// portd is killed while it imports, again and again: one edition or the other is there, whole, and so is the one before it.
func TestKilledWhileImporting(t *testing.T) {
	clean(t)
	rounds := 6
	if os.Getenv("PORTD_LONG") != "" {
		rounds = 60
	}
	d := portdtest.New(t)
	entries := shipped()
	last := ssh(entries).Description
	began := func() (*process, *client.Client) {
		p := portd(t, d, "")
		p.begin(t)
		return p, dial(t, d)
	}
	kill := func(p *process) {
		t.Helper()
		if err := p.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		p.ends(t)
	}
	done := 0
	for round := range rounds {
		next := fmt.Sprint("of round ", round)
		file := csvOf(t, entries, next).Bytes()
		p, c := began()
		if got := describes(t, c, 22); got != last {
			t.Errorf("round %d: 22 is %q at first, want %q", round, got, last)
		}
		before := registryOf(t, c)
		var importing sync.WaitGroup
		var err error
		importing.Go(func() { _, err = c.ImportServices(t.Context(), bytes.NewReader(file), nil) })
		time.Sleep(time.Duration(rand.IntN(250)) * time.Millisecond) // the random moment
		kill(p)
		importing.Wait()
		c.Close()

		p, c = began()
		after := registryOf(t, c)
		got := describes(t, c, 22)
		previous := before.GetPrevious().GetDigest()
		if got == next {
			previous = before.GetDigest()
			done++
		}
		if got != last && got != next || err == nil && got != next || after.GetRecords() != uint32(len(entries)) || after.GetPrevious().GetDigest() != previous {
			t.Errorf("round %d: 22 is %q, it was %q, and the import of %q said %v; before %v, after %v", round, got, last, next, err, before, after)
		}
		if previous != "" {
			if _, err := c.Services.UndoImport(t.Context(), &pb.UndoImportRequest{DryRun: true}); err != nil {
				t.Errorf("round %d: the edition before cannot be read: %v", round, err)
			}
		}
		last = got
		kill(p)
		c.Close()
	}
	t.Logf("%d of %d imports were done when portd was killed", done, rounds)
}

// Thousands look something up while others import; each is answered, by one edition or another.
func TestLookupsWhileImporting(t *testing.T) {
	d := portdtest.Start(t)
	entries := shipped()
	files := [][]byte{csvOf(t, entries, "one").Bytes(), csvOf(t, entries, "two").Bytes()}
	known := map[string]bool{ssh(entries).Description: true, "one": true, "two": true}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var looking sync.WaitGroup
	looked := make([]int, 4)
	for i := range looked {
		c := d.Client(t)
		looking.Go(func() {
			for ; ctx.Err() == nil; looked[i]++ {
				if got, err := lookup(t.Context(), c, 22); err != nil || !known[got] {
					t.Errorf("22 is %q: %v", got, err)
					return
				}
			}
		})
	}
	c := d.Client(t)
	for i := range 3 {
		if _, err := c.ImportServices(t.Context(), bytes.NewReader(files[i%2]), nil); err != nil {
			t.Error(err)
		}
	}
	stop()
	looking.Wait()
	all := 0
	for _, n := range looked {
		all += n
	}
	if all < 500 {
		t.Errorf("%d look-ups in 3 imports: they prove nothing", all)
	}
	t.Logf("%d look-ups in 3 imports", all)
}

// A range is looked at as a whole, and what has its ports is told in their order.
func TestWhoisRange(t *testing.T) {
	nstest.Need(t)
	d := portdtest.Start(t)
	c := d.Client(t)
	reserve(t, c, "b", "tcp/26950")
	reserve(t, c, "a", "udp/26910", "tcp/26990-26999")
	pid, let := steal(t, "127.0.0.1:26930", ":26980")
	defer let()
	if _, err := c.Reservations.Reserve(t.Context(), &pb.ReserveRequest{Name: "told", Spec: &pb.ReservationSpec{
		Mode: pb.Mode_MODE_RECORDED, Endpoints: spec(t, "tcp/26980").GetEndpoints(),
	}}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Ports.Whois(t.Context(), &pb.WhoisRequest{Query: &pb.WhoisRequest_Ports{Ports: &pb.PortRange{First: 26905, Last: 26995}}})
	if err != nil {
		t.Fatal(err)
	}
	var uses []string
	for _, u := range got.GetUses() {
		text := u.GetReservation().GetName()
		if h := u.GetHolder(); h != nil {
			text = fmt.Sprintf("%d of %d", h.GetEndpoint().GetPorts().GetFirst(), h.GetProcesses()[0].GetPid())
		}
		uses = append(uses, text)
	}
	want := []string{"a", fmt.Sprintf("26930 of %d", pid), "b", "told", "a"}
	if diff := cmp.Diff(want, uses); diff != "" {
		t.Errorf("uses (-want +got):\n%s", diff)
	}
}

func TestFreePorts(t *testing.T) {
	nstest.Need(t)
	d := portdtest.Start(t)
	c := d.Client(t)
	ask := func() *pb.ListFreePortsResponse {
		t.Helper()
		got, err := c.Ports.ListFreePorts(t.Context(), &pb.ListFreePortsRequest{
			Protocols: []pb.Protocol{pb.Protocol_PROTOCOL_TCP, pb.Protocol_PROTOCOL_UDP}, Within: &pb.PortRange{First: 26900, Last: 26999},
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	before := ask()
	var run *pb.PortRange
	for _, r := range before.GetRanges() {
		if r.GetLast() >= r.GetFirst()+8 {
			run = r
		}
	}
	if run == nil || !before.GetHostChecked() || before.GetReserved() != 0 || before.GetInUse() != 0 {
		t.Fatalf("at first: %v", before)
	}
	// One is held by portd, one is listened on by another, and one is the host's own.
	first := run.GetFirst()
	reserve(t, c, "", fmt.Sprintf("tcp/%d", first+1))
	_, let := steal(t, fmt.Sprintf("127.0.0.1:%d", first+3))
	defer let()
	if _, err := c.Services.AddServices(t.Context(), &pb.AddServicesRequest{Services: []*pb.ServiceEntry{{
		Name: "myapp", Ports: &pb.PortRange{First: first + 5}, Protocol: pb.Protocol_PROTOCOL_UDP,
	}}}); err != nil {
		t.Fatal(err)
	}
	after := ask()
	if after.GetAssigned() != before.GetAssigned()+1 || after.GetReserved() != 1 || after.GetInUse() != 1 || after.GetFree() != before.GetFree()-3 {
		t.Errorf("before: %v\nafter: %v", before, after)
	}
	for _, r := range after.GetRanges() {
		for _, taken := range []uint32{first + 1, first + 3, first + 5} {
			if r.GetFirst() <= taken && taken <= r.GetLast() {
				t.Errorf("%d is not free: %v", taken, r)
			}
		}
	}
}
