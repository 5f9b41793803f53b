package portdtest_test

import (
	"context"
	"os"
	"testing"

	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/portdtest"
	pb "github.com/portd/portd/proto/portd/v1"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func TestDaemon(t *testing.T) {
	nstest.Descriptors(t)
	var dir string
	t.Run("lives", func(t *testing.T) {
		d := portdtest.Start(t)
		dir = d.Dir
		c := d.Client(t)
		st, err := c.Daemon.GetStatus(t.Context(), &pb.GetStatusRequest{})
		if err != nil || st.GetHandoffSocket() != d.Handoff() || st.GetStateDir() != d.State {
			t.Fatal(st, err)
		}
		d.Restart(t)
		again, err := c.Daemon.GetStatus(t.Context(), &pb.GetStatusRequest{})
		if err != nil || again.GetStoreId() != st.GetStoreId() || again.GetStartTime().AsTime().Equal(st.GetStartTime().AsTime()) {
			t.Fatal(again, err)
		}
		d.Stop(t)
		d.Stop(t)
		if _, err := c.Daemon.GetStatus(context.Background(), &pb.GetStatusRequest{}); err == nil {
			t.Error("a stopped portd answers")
		}
	})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}
