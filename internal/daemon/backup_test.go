package daemon_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/daemon"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// A restore comes to nothing where the portd that is to begin with it dies, at whatever step: the one from before goes on with what it had,
// and its caller is told so. So it does when it is killed after that.
func TestNotRestored(t *testing.T) {
	nstest.Need(t)
	d := portdtest.New(t)
	step := filepath.Join(t.TempDir(), "step")
	k := startKept(t, d, self(t), envAct+"=daemon", envStep+"="+step, envVersion+"=new")
	c := d.Client(t)
	reserve(t, c, "old", "tcp/8080")
	var file bytes.Buffer
	if _, err := c.Backup(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	reserve(t, c, "since", "tcp/8081")
	for _, at := range some(t, 2, "hello", "opened-store", "prepared", "yours") {
		t.Run(at, func(t *testing.T) {
			if err := os.WriteFile(step, []byte("new kill "+at), 0o600); err != nil {
				t.Fatal(err)
			}
			pid, store := k.pid(t, 0), k.status().GetStoreId()
			for range 2 { // the second time is as the first
				if _, err := c.Restore(t.Context(), bytes.NewReader(file.Bytes()), nil); answer(err) != "FailedPrecondition UPGRADE_FAILED" {
					t.Errorf("%v (%s)", err, answer(err))
				}
				if now := k.status(); int(now.GetPid()) != pid || now.GetStoreId() != store {
					t.Fatalf("%d answers with %s, and it was %d with %s", now.GetPid(), now.GetStoreId(), pid, store)
				}
			}
			reserve(t, c, "more", "tcp/8082")
			wantHeld(t, 8080, 8081, 8082)
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			k.pid(t, pid)
			if now := k.status(); now.GetStoreId() != store || now.GetReservations() != 3 {
				t.Errorf("after its death: %v", now)
			}
			releaseRef(t, c, "more")
		})
	}
}

// Read-only says what there is and what is damaged, holds the ports of what is whole, and refuses what changes something, with the reason.
func TestReadOnlyStart(t *testing.T) {
	nstest.Need(t)
	d := portdtest.Start(t)
	reserve(t, d.Client(t), "whole", "tcp/8080")
	reserve(t, d.Client(t), "damaged-one", "tcp/8081")
	d.Stop(t)
	path := filepath.Join(d.State, "portd.db")
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file = bytes.ReplaceAll(file, []byte("damaged-one"), []byte("damaged.one"))
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary(t), "--socket", d.Socket, "--state", d.State, "--policy", d.Policy)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "portd --read-only") {
		t.Errorf("it starts on what is damaged, or does not say what to do (%v): %s", err, out)
	}
	k := &kept{Cmd: exec.Command(cmd.Path, append(cmd.Args[1:], "--read-only")...), d: d, log: &buffer{}}
	k.Stderr = k.log
	if err := k.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.stop(t) })
	k.pid(t, 0)
	c := d.Client(t)
	get(t, c, "whole")
	wantHeld(t, 8080)
	wantFree(t, 8081)
	if why := strings.Join(k.status().GetReadOnly(), "; "); !strings.Contains(why, "--read-only") || !strings.Contains(why, "reservation") || !strings.Contains(why, "damaged") {
		t.Errorf("status: %s", why)
	}
	for name, try := range map[string]func() error{
		"reserve": func() error {
			_, err := c.Reservations.Reserve(t.Context(), &pb.ReserveRequest{Name: "more", Spec: spec(t, "tcp/8090")})
			return err
		},
		"release": func() error {
			_, err := c.Reservations.Release(t.Context(), &pb.ReleaseRequest{Reservation: "whole"})
			return err
		},
		"restore": func() error { _, err := c.Restore(t.Context(), strings.NewReader("x"), nil); return err },
		"upgrade": func() error { _, err := upgrade(t, c, ""); return err },
	} {
		if err := try(); err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.Backup(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "a backup is whole or it is none") {
		t.Errorf("backup: %v", err)
	}
	k.stop(t)
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, file) {
		t.Errorf("the file is changed (%v)", err)
	}
}

// A portd that is read-only writes nothing to its state, also where there are ports that it keeps from others by a sysctl. What is whole can be backed up.
func TestReadOnlyWritesNothing(t *testing.T) {
	nstest.Need(t)
	d := portdtest.Start(t)
	reserve(t, d.Client(t), "web", "tcp/8080")
	record(t, d.Client(t), "recorded", "tcp/40001")
	d.Stop(t)
	before := snapshot(t, d.State)
	k := &kept{Cmd: exec.Command(binary(t), "--socket", d.Socket, "--state", d.State, "--policy", d.Policy, "--read-only"), d: d, log: &buffer{}}
	k.Stderr = k.log
	if err := k.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.stop(t) })
	k.pid(t, 0)
	c := d.Client(t)
	var file bytes.Buffer
	info, err := c.Backup(t.Context(), &file)
	if err != nil || info.GetReservations() != 2 || info.GetSchemaVersion() != k.status().GetSchemaVersion() {
		t.Errorf("backup: %v (%v); schema %d", info, err, k.status().GetSchemaVersion())
	}
	if now := snapshot(t, d.State); now != before {
		t.Errorf("while it runs there is\n%s\nand there was\n%s", now, before)
	}
	k.stop(t)
	if now := snapshot(t, d.State); now != before {
		t.Errorf("there is\n%s\nand there was\n%s", now, before)
	}
	other := daemon.Config{Socket: filepath.Join(d.Dir, "other", "portd.sock"), StateDir: filepath.Join(d.Dir, "other-state")}
	if said, err := daemon.Restore(t.Context(), other, "-", &file); err != nil || !strings.Contains(said, "2 reservations as of revision") {
		t.Errorf("%s (%v)", said, err)
	}
}

// snapshot is a directory and when what in it was changed.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	if err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil {
			fmt.Fprintln(&all, path, info.Mode(), info.Size(), info.ModTime())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// A backup comes over REST as well, in pieces of JSON, and goes back the same way.
func TestBackupREST(t *testing.T) {
	nstest.Need(t)
	d := portdtest.Start(t)
	c := d.Client(t)
	reserve(t, c, "web", "tcp/8080")
	rest := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", d.Socket)
	}}}
	resp, err := rest.Get("http://portd/v1/backup")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var file []byte
	var sum [sha256.Size]byte
	for in := json.NewDecoder(resp.Body); in.More(); {
		var part struct{ Result struct{ Data, SHA256 []byte } }
		if err := in.Decode(&part); err != nil {
			t.Fatal(err)
		}
		file = append(file, part.Result.Data...)
		copy(sum[:], part.Result.SHA256)
	}
	if sum != sha256.Sum256(file) {
		t.Errorf("%d bytes have another checksum", len(file))
	}
	for name, cut := range map[string]int{"200": 0, "400": 100} {
		var body bytes.Buffer
		out := json.NewEncoder(&body)
		_ = out.Encode(map[string]any{"options": map[string]any{"dryRun": true}})
		for chunk := range slices.Chunk(file[:len(file)-cut], 256<<10) {
			_ = out.Encode(map[string]any{"data": chunk})
		}
		resp, err := rest.Post("http://portd/v1/backup:restore", "application/json", &body)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if said, _ := io.ReadAll(resp.Body); !strings.HasPrefix(resp.Status, name) {
			t.Errorf("%s, want %s: %s", resp.Status, name, said)
		}
	}
}
