package fdstore_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/nstest"
)

const envAct = "FDSTORE_TEST_ACT"

func TestMain(m *testing.M) {
	if act := os.Getenv(envAct); act != "" {
		os.Exit(perform(act))
	}
	os.Exit(m.Run())
}

// A manager hears what is said to NOTIFY_SOCKET.
type manager struct {
	*net.UnixConn
	path string
}

func listenManager(t *testing.T) manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return manager{conn, path}
}

// hears is the next message and the inodes of what came with it.
func (m manager) hears(t *testing.T) (string, []uint64) {
	t.Helper()
	text, control := make([]byte, 4096), make([]byte, 1024)
	n, cn, _, _, err := m.ReadMsgUnix(text, control)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:cn])
	if err != nil {
		t.Fatal(err)
	}
	var all []uint64
	for _, msg := range messages {
		fds, err := unix.ParseUnixRights(&msg)
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			all = append(all, inode(t, fd))
			_ = unix.Close(fd)
		}
	}
	return string(text[:n]), all
}

func TestServiceManager(t *testing.T) {
	nstest.Descriptors(t)
	m := listenManager(t)
	t.Setenv("NOTIFY_SOCKET", m.path)
	t.Setenv("FDSTORE", "512")
	socket, most := fdstore.Manager()
	if most != 512 {
		t.Fatalf("the store takes %d", most)
	}
	s := fdstore.New(nil)
	defer s.Close()
	a, b := thing(t), thing(t)
	s.Inherit([]fdstore.Item{{Name: "s.1", FD: a}})
	if err := s.AttachManager(socket, most); err != nil {
		t.Fatal(err)
	}
	s.Put("s.1", a)
	s.Put("s.2", b)
	if text, with := m.hears(t); text != "FDSTORE=1\nFDNAME=s.2\nFDPOLL=0" || !cmp.Equal(with, []uint64{inode(t, b)}) {
		t.Errorf("heard %q with %d", text, with)
	}
	if !s.Kept() {
		t.Error("not kept")
	}
	s.Remove("s.1")
	if text, with := m.hears(t); text != "FDSTOREREMOVE=1\nFDNAME=s.1" || with != nil {
		t.Errorf("heard %q with %d", text, with)
	}
	settled := make(chan bool)
	go func() {
		s.Settle(t.Context())
		settled <- true
	}()
	if text, with := m.hears(t); text != "BARRIER=1" || len(with) != 1 {
		t.Errorf("heard %q with %d", text, with)
	}
	<-settled
	said := make(chan error)
	go func() { said <- s.MainPID(os.Getpid()) }()
	if text, with := m.hears(t); text != fmt.Sprint("MAINPID=", os.Getpid()) || with != nil {
		t.Errorf("heard %q with %d", text, with)
	}
	if text, _ := m.hears(t); text != "BARRIER=1" {
		t.Errorf("heard %q", text)
	}
	if err := <-said; err != nil {
		t.Error(err)
	}
}

// A service manager that keeps nothing hears what it asked for, and that alone.
func TestManagerWithoutStore(t *testing.T) {
	m := listenManager(t)
	t.Setenv("NOTIFY_SOCKET", m.path)
	t.Setenv("FDSTORE", "")
	s := fdstore.New(nil)
	defer s.Close()
	if err := s.AttachManager(fdstore.Manager()); err != nil {
		t.Fatal(err)
	}
	s.Put("s.1", thing(t))
	s.Remove("s.1")
	s.Settle(t.Context())
	s.Notify("READY=1")
	if text, _ := m.hears(t); text != "READY=1" {
		t.Errorf("heard %q", text)
	}
	if s.Kept() {
		t.Error("kept")
	}
}

// perform is another process: of TestFull, or of TestFromManager.
func perform(act string) int {
	if act == "full" {
		if err := full(); err != nil {
			fmt.Println(err)
			return 1
		}
		return 0
	}
	for _, it := range fdstore.FromManager() {
		flags, err := unix.FcntlInt(uintptr(it.FD), unix.F_GETFD, 0)
		fmt.Println(it.Name, it.FD, flags&unix.FD_CLOEXEC != 0, err)
	}
	fmt.Println("left:", os.Getenv("LISTEN_FDS")+os.Getenv("LISTEN_PID")+os.Getenv("LISTEN_FDNAMES"))
	return 0
}

func TestFromManager(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ env, want string }{
		{"LISTEN_FDS=3 LISTEN_FDNAMES=control:s.1:", "control 3 true <nil>\ns.1 4 true <nil>\nunknown 5 true <nil>\n"},
		{"LISTEN_FDS=2", "unknown 3 true <nil>\nunknown 4 true <nil>\n"},
		{"LISTEN_FDS=-1", ""},
		{"LISTEN_FDS=3 LISTEN_PID=1", ""}, // another process's
	} {
		cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec env `+tt.env+` "$0"`, self)
		for range 3 {
			cmd.ExtraFiles = append(cmd.ExtraFiles, os.Stdin)
		}
		cmd.Env = append(os.Environ(), envAct+"=list")
		out, err := cmd.Output()
		if want := tt.want + "left: \n"; err != nil || string(out) != want {
			t.Errorf("%s: got %q, %v; want %q", tt.env, out, err, want)
		}
	}
}
