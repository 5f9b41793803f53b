package peercred_test

import (
	"testing"

	"github.com/portd/portd/internal/peercred"
	"golang.org/x/sys/unix"
)

func TestNetNS(t *testing.T) {
	own, err := peercred.OwnNetNS()
	if err != nil {
		t.Fatal(err)
	}
	if own == 0 {
		t.Skip("needs SO_NETNS_COOKIE")
	}
	for _, network := range []string{"unix", "unixpacket"} {
		t.Run("same "+network, func(t *testing.T) {
			p := meet(t, network, "stay", nil)
			if ns, err := peercred.NetNSOf(p.conn); err != nil || ns != own || ns.Differs(own) {
				t.Errorf("peer in %d (%v), we in %d", ns, err, own)
			}
		})
		t.Run("other "+network, func(t *testing.T) {
			p := meet(t, network, "stay", inNamespaces(t, unix.CLONE_NEWNET))
			if ns, err := peercred.NetNSOf(p.conn); err != nil || !ns.Differs(own) {
				t.Errorf("peer in %d (%v), we in %d", ns, err, own)
			}
		})
	}
	t.Run("another user", func(t *testing.T) {
		p := meet(t, "unix", "stay", asOther(t))
		if ns, err := peercred.NetNSOf(p.conn); err != nil || ns != own {
			t.Errorf("peer in %d (%v), we in %d", ns, err, own)
		}
	})
	if peercred.NetNS(0).Differs(own) || own.Differs(0) {
		t.Error("an unknown namespace differs")
	}
}
