package daemon_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

// The requests that were answered are read last. A portd that finds one of them damaged has been ready for nobody, has written nothing, and
// says what can be done.
func TestDamagedRequest(t *testing.T) {
	t.Parallel()
	d := portdtest.Start(t)
	if _, err := d.Client(t).Reservations.Reserve(t.Context(), &pb.ReserveRequest{Spec: spec(t, "tcp/any"), RequestId: "damaged-one"}); err != nil {
		t.Fatal(err)
	}
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
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(t), "--socket", d.Socket, "--state", d.State, "--policy", d.Policy)
	out, err := cmd.CombinedOutput()
	if text := string(out); err == nil || ctx.Err() != nil || !strings.Contains(text, "portd --read-only") || !strings.Contains(text, "request") || strings.Contains(text, "msg=ready") {
		t.Errorf("it is ready, or does not say what to do (%v): %s", err, out)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, file) {
		t.Errorf("the file is another one now (%v)", err)
	}
}
