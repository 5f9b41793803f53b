package nstest

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// As returns the attributes that start a command as uid and gid with no supplementary groups; it skips t where this process cannot
// become another user. To start the test binary itself give the path /proc/self/exe: go test puts it into a directory that
// other users may not enter.
func As(t testing.TB, uid, gid uint32) *syscall.SysProcAttr {
	t.Helper()
	const need = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		t.Fatalf("capget: %v", err)
	}
	if caps[0].Effective&need != need {
		t.Skipf("needs CAP_SETUID and CAP_SETGID to run a command as uid %d", uid)
	}
	// In a user namespace root may have the capabilities and still know no other user.
	for path, id := range map[string]uint32{"/proc/self/uid_map": uid, "/proc/self/gid_map": gid} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !maps(string(text), id) {
			t.Skipf("needs id %d, which %s does not have", id, path)
		}
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
}

// maps reports whether a uid_map or gid_map, lines of "first outer count" (user_namespaces(7)), covers id.
func maps(text string, id uint32) bool {
	for line := range strings.Lines(text) {
		var first, outer, count uint64
		if _, err := fmt.Sscan(line, &first, &outer, &count); err != nil {
			return false
		}
		if uint64(id) >= first && uint64(id)-first < count {
			return true
		}
	}
	return false
}
