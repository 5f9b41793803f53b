package etcservices_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
)

// envLookup makes the test binary look up the services on its standard input, each "name proto", with Go's own resolver.
const envLookup = "ETCSERVICES_TEST_LOOKUP"

func TestMain(m *testing.M) {
	if os.Getenv(envLookup) == "" {
		os.Exit(m.Run())
	}
	resolver := net.Resolver{PreferGo: true}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		name, proto, _ := strings.Cut(in.Text(), " ")
		port, _ := resolver.LookupPort(context.Background(), proto, name) // 0 is the answer that there is none
		fmt.Println(port)
	}
}

// Programs in Go that do without the C library read the file themselves. Where a name has one port and no capital
// letter, they find what the C library finds.
func TestGoReads(t *testing.T) {
	db := ianadb.Embedded()
	var in strings.Builder
	var qs []question
	for _, name := range names(db) {
		for p := ianadb.TCP; p <= ianadb.UDP; p++ {
			if ports := db.Ports(name, p); len(ports) == 1 && ports[0].First == ports[0].Last && strings.ToLower(name) == name {
				qs = append(qs, question{name: name, proto: p.String()})
				fmt.Fprintln(&in, name, p)
			}
		}
	}
	file, _ := ianaFile()
	g := newGlibc(t, file)
	t.Setenv(envLookup, "yes")
	t.Setenv("GORACE", "atexit_sleep_ms=0")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	lines := g.run(t, in.String(), "exec", self)
	for i, q := range qs {
		if want := fmt.Sprint(right(db, q).Port); lines[i] != want {
			t.Errorf("%v: Go says %s, the registry %s", q, lines[i], want)
		}
	}
	t.Logf("%d questions", len(qs))
}

func TestGetent(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("getent"); err != nil {
		t.Skip("needs getent(1): ", err)
	}
	own := []ianadb.Entry{entry(t, "web", "8123", "tcp")}
	file, _ := write(own, entries(ianadb.Embedded()))
	got := newGlibc(t, file).run(t, "", "exec", "getent", "services", "web", "6005/tcp", "www/udp", "sql*net", "8123")
	for i, line := range got {
		got[i] = strings.Join(strings.Fields(line), " ")
	}
	want := []string{"web 8123/tcp", "x11 6005/tcp", "http 80/udp www www-http", "sql-net 66/tcp sql*net", "web 8123/tcp"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("getent (-want +got):\n%s", diff)
	}
}
