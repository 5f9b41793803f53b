package rpc_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/netns"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/rpc"
)

// A process is to portd who it is to the kernel, by either door: what REST does in portd's own process it does for the
// caller, not for portd.
func TestCallerKeepsHisUID(t *testing.T) {
	attr := nstest.As(t, 65534, 65534)
	roots := registry.UIDPrincipal(0)
	h := start(t, crew{workers: []rpc.Worker{
		{ID: "wrk_1", Listeners: []rpc.WorkerListener{{Owner: roots}}},
	}})
	r := reserve(t, h.grpc(t), "roots")
	denied := fmt.Sprintf("PermissionDenied: uid:65534 may not release %s: "+
		"it belongs to uid:0; only its owner, root and the user that portd runs as may", r.GetAssigned()[0].GetEndpoint().GetText())
	const notHis = "the service registry is for root and the user that portd runs as to change"
	want := answers{
		Status:  both("uid:65534 admin=false"),
		Reserve: both("for uid:65534"),
		Drain:   both(strings.Replace(denied, "release", "drain the workers of", 1)),
		Release: both(denied),
		Workers: both("0"),
		Add:     both("PermissionDenied: uid:65534 may not add services: " + notHis),
		Import:  both("PermissionDenied: uid:65534 may not import a service registry: " + notHis),
		Undo:    both("PermissionDenied: uid:65534 may not bring back another service registry: " + notHis),
	}
	if diff := cmp.Diff(want, h.asked(t, attr, r.GetId())); diff != "" {
		t.Errorf("a stranger (-want +got):\n%s", diff)
	}
	root := h.asked(t, nil, r.GetId())
	want = answers{
		Status:  both("uid:0 admin=true"),
		Reserve: both("for uid:0"),
		Drain:   both("done"),
		Release: [2]string{"done", `NotFound: no reservation has the id or name "` + r.GetId() + `"`}, // REST came second
		Workers: both("1"),
		Add:     both("done"),
	}
	want.Import, want.Undo = root.Import, root.Undo // which say what is wrong
	for _, s := range []string{root.Import[0], root.Import[1], root.Undo[0], root.Undo[1]} {
		if !strings.HasPrefix(s, "InvalidArgument: ") && !strings.HasPrefix(s, "NotFound: ") {
			t.Errorf("root is told %q", s)
		}
	}
	if diff := cmp.Diff(want, root); diff != "" {
		t.Errorf("root (-want +got):\n%s", diff)
	}
}

func TestCallerOfAnotherNetworkNamespace(t *testing.T) {
	h := start(t, nil)
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		uid, gid := os.Geteuid(), os.Getegid()
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		attr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN}
	}
	if fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
		_, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		unix.Close(fd)
		if errors.Is(err, unix.ENOPROTOOPT) {
			t.Skip("needs SO_NETNS_COOKIE (Linux 5.14)")
		}
	}
	nstest.Need(t) // who may make one may make another
	got := h.asked(t, attr, "nobody")
	if netns.MayEnter() {
		if want := both(fmt.Sprintf("for uid:%d", os.Geteuid())); got.Reserve != want {
			t.Errorf("from another network namespace reserve answers %q, want %q", got.Reserve, want)
		}
		all, err := h.reg.List(t.Context(), registry.Caller{}, registry.Filter{}, registry.Page{})
		if err != nil || len(all.Items) != 2 {
			t.Fatalf("%d reservations, %v; want one by each door", len(all.Items), err)
		}
		for _, res := range all.Items {
			if ns := res.Assigned[0].Endpoint.Netns; ns == registry.HostNetns || strings.Trim(ns, "0123456789") != "" {
				t.Errorf("reserved in %q, want the number of the caller's network namespace", ns)
			}
		}
	} else {
		for _, s := range got.Reserve {
			if !strings.HasPrefix(s, "FailedPrecondition: ") || !strings.Contains(s, "CAP_SYS_ADMIN") {
				t.Errorf("from another network namespace reserve answers %q", s)
			}
		}
	}
	if want := both(fmt.Sprintf("uid:%d admin=true", os.Geteuid())); got.Status != want {
		t.Errorf("from another network namespace status answers %q, want %q", got.Status, want)
	}
}
