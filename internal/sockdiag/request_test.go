package sockdiag

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A kernel that tells of UDP in both families at once tells what it tells of each.
func TestBothAtOnce(t *testing.T) {
	if !bothAtOnce() {
		t.Skip("needs a kernel that tells of UDP in the old way, from about Linux 5.9 on")
	}
	d, err := newDumper()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	for _, at := range []unix.Sockaddr{
		&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}, &unix.SockaddrInet6{Addr: [16]byte{15: 1}}, &unix.SockaddrInet6{},
	} {
		family := unix.AF_INET6
		if _, is4 := at.(*unix.SockaddrInet4); is4 {
			family = unix.AF_INET
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Skipf("needs a socket of family %d: %v", family, err)
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, at); err != nil {
			t.Skipf("needs an address of family %d: %v", family, err)
		}
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			t.Fatal(err)
		}
		states := stateBits(UDP, nil)
		var each, both []Socket
		into := func(all *[]Socket) func([]byte) error {
			return func(m []byte) error {
				s, err := socket(UDP, m)
				*all = append(*all, s)
				return err
			}
		}
		if err := d.dump(unix.SOCK_DIAG_BY_FAMILY, request(uint8(family), UDP, 0, states, 1, 65535), into(&each)); err != nil {
			t.Fatal(err)
		}
		if err := d.dump(tcpOfOld, oldRequest(UDP, 0, states, 1, 65535), into(&both)); err != nil {
			t.Fatal(err)
		}
		mine := func(s Socket) bool { return s.Cookie == cookie }
		i, j := slices.IndexFunc(each, mine), slices.IndexFunc(both, mine)
		if i < 0 || j < 0 || each[i] != both[j] {
			t.Errorf("%v: by its family %v, with both %v", at, each, both)
		}
	}
}
