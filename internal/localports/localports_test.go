package localports_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portd/portd/internal/localports"
	"github.com/portd/portd/internal/nstest"
)

func TestKeeps(t *testing.T) {
	record := fresh(t, "22,8080-8081")
	k := start(t, record)
	k.keep(t, 9100, 9102)
	want(t, "22,8080-8081,9100-9102")
	k.keep(t, 9102, 9103) // one of them for the second time
	k.keep(t, 8081, 8082) // one of them the administrator's
	want(t, "22,8080-8082,9100-9103")
	k.letGo(t, 9102, 9103)
	want(t, "22,8080-8082,9100-9102")
	k.letGo(t, 8081, 8082)
	want(t, "22,8080-8081,9100-9102")
	k.letGo(t, 9100, 9102)
	want(t, "22,8080-8081")
	k.keep(t, 1, 1)
	k.keep(t, 65535, 65535)
	want(t, "1,22,8080-8081,65535")
	k.stop()
	want(t, "22,8080-8081")
	if _, err := os.Stat(record); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a record is left: %v", err)
	}
}

func TestWithoutAnAdministrator(t *testing.T) {
	k := start(t, fresh(t, ""))
	k.keep(t, 9000, 9000)
	want(t, "9000")
	k.stop()
	want(t, "")
}

// Who writes the sysctl without portd's entries means what he writes; who writes it with all of them has read them there.
func TestAdministratorWritesMeanwhile(t *testing.T) {
	for _, tt := range []struct{ name, writes, settled, left string }{
		{"adds one", "22,9000-9001,9999", "22,9000-9001,9999", "22,9999"},
		{"takes his out", "9000-9001", "9000-9001", ""},
		{"writes it anew", "80", "80,9000-9001", "80"},
		{"and has one of portd's", "80,9000", "80,9000-9001", "80,9000"},
		{"empties it", "", "9000-9001", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := start(t, fresh(t, "22"))
			k.keep(t, 9000, 9001)
			administrator(t, tt.writes)
			k.keep(t, 9001, 9001) // changes nothing, so it does not look
			k.keep(t, 7, 7)
			k.letGo(t, 7, 7)
			want(t, tt.settled)
			k.stop()
			want(t, tt.left)
		})
	}
}

// Nobody asks it to look, and it does.
func TestLooksByItself(t *testing.T) {
	k := start(t, fresh(t, ""))
	k.keep(t, 9000, 9000)
	for _, text := range []string{"80", "81"} {
		administrator(t, text)
		await(t, text+",9000")
	}
	k.stop()
	want(t, "81")
}

// What an earlier portd has left is given back, by the record that it has left too.
func TestRecords(t *testing.T) {
	const mine = "portd's own entries in net.ipv4.ip_local_reserved_ports, version 1\nboot %s\nnetns %s\nsure %s\nmaybe %s\n"
	for _, tt := range []struct {
		name, record, there string
		kept, left          string // with 9000 kept, and after the end
	}{
		{"killed", fmt.Sprintf(mine, "boot", "netns", "9000-9001", ""), "22,9000-9001", "22,9000", "22"},
		{"killed before it added", fmt.Sprintf(mine, "boot", "netns", "9001", "9002-9003"), "22,9001", "22,9000", "22"},
		{"killed while it added", fmt.Sprintf(mine, "boot", "netns", "9001", "9002-9003"), "22,9001,9003", "22,9000", "22"},
		{"killed while it took out", fmt.Sprintf(mine, "boot", "netns", "", "9000-9003"), "22,9001", "22,9000", "22"},
		{"written anew since", fmt.Sprintf(mine, "boot", "netns", "9000-9001", "9002"), "22,9000,9002", "22,9000,9002", "22,9000,9002"},
		{"of another boot", fmt.Sprintf(mine, "before", "netns", "9001", ""), "9001", "9000-9001", "9001"},
		{"of another namespace", fmt.Sprintf(mine, "boot", "other", "9001", ""), "9001", "9000-9001", "9001"},
		{"damaged", "nonsense", "9001", "9000-9001", "9001"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			record := fresh(t, tt.there)
			if err := os.WriteFile(record, []byte(tt.record), 0o600); err != nil {
				t.Fatal(err)
			}
			k := start(t, record)
			k.keep(t, 9000, 9000)
			want(t, tt.kept)
			k.stop()
			want(t, tt.left)
		})
	}
}

// The record comes first: what cannot be remembered is not added.
func TestNothingWithoutARecord(t *testing.T) {
	fresh(t, "22")
	k := start(t, filepath.Join(t.TempDir(), "no", "such", "directory"))
	k.keep(t, 9000, 9000)
	want(t, "22")
}

// Administrators with more entries than one write takes cannot have portd's taken out without losing some of theirs.
func TestTooLong(t *testing.T) {
	record := fresh(t, "")
	var scattered []string
	for port := 20001; port < 24000; port += 2 {
		scattered = append(scattered, fmt.Sprint(port))
	}
	whole := strings.Join(scattered, ",")
	f, err := os.OpenFile(localports.Path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for rest := whole + ","; rest != ""; {
		n := strings.LastIndex(rest[:min(4000, len(rest))], ",")
		if _, err := f.WriteAt([]byte(rest[:n]), 1); err != nil {
			t.Fatal(err)
		}
		rest = rest[n+1:]
	}
	f.Close()
	want(t, whole)

	k := start(t, record)
	k.keep(t, 9000, 9001)
	k.letGo(t, 9000, 9000)
	want(t, "9000-9001,"+whole)
	k.stop()
	want(t, "9000-9001,"+whole)

	// He makes room, and the next portd gives back what the last one could not.
	administrator(t, "9000-9001,20001")
	k = start(t, record)
	k.keep(t, 1, 1)
	k.stop()
	want(t, "20001")
}

// Where what must stay fits only because portd's own lie between, it is one run with them.
func TestFitsByRuns(t *testing.T) {
	k := start(t, fresh(t, ""))
	k.keep(t, 30000, 33999)
	k.keep(t, 40000, 40000)
	// Two thousand entries of the administrator's in portd's ports, by way of a read and a write.
	administrator(t, "30000-33999,40000,50000")
	k.letGo(t, 40000, 40000)
	want(t, "30000-33999,50000")
	k.stop()
	want(t, "50000")
}

// Somebody who has the file open may be about to write what he has read there. Until he is done nothing is taken out.
func TestReaderInTheWay(t *testing.T) {
	k := start(t, fresh(t, "22"))
	k.keep(t, 9000, 9001)
	f, err := os.OpenFile(localports.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if leases, err := canLease(); !leases {
		t.Skipf("needs write leases on files of the namespace's owner: %v", err)
	}
	k.keep(t, 9005, 9005)
	want(t, "22,9000-9001,9005")
	k.letGo(t, 9001, 9001)
	want(t, "22,9000-9001,9005")
	f.Close()
	await(t, "22,9000,9005")
}

// A program that asks for any port does not get one that is kept; one that names it does.
func TestTheKernelObeys(t *testing.T) {
	const rangePath = "/proc/sys/net/ipv4/ip_local_port_range"
	record := fresh(t, "")
	before, err := os.ReadFile(rangePath)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(rangePath, []byte("41000 41009"), 0); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(rangePath, before, 0)
	k := start(t, record)
	k.keep(t, 41000, 41004)
	k.keep(t, 41006, 41009)
	for range 20 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if got := ln.Addr().(*net.TCPAddr).Port; got != 41005 {
			t.Errorf("the kernel gives %d, which is kept", got)
		}
		ln.Close()
	}
	ln, err := net.Listen("tcp", "127.0.0.1:41004")
	if err != nil {
		t.Fatalf("a program that names a kept port: %v", err)
	}
	ln.Close()
}

// Without the right nothing is kept, and nobody waits.
func TestRefused(t *testing.T) {
	nstest.Need(t)
	record := fresh(t, "22")
	cmd := exec.Command("/proc/self/exe", record)
	cmd.SysProcAttr = nstest.As(t, 65534, 65534)
	cmd.Env = append(os.Environ(), envAct+"=refused", "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "permission denied") {
		t.Errorf("%v: %s", err, out)
	}
	want(t, "22")
}
