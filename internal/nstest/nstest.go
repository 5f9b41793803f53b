// Package nstest runs a package's tests in a network namespace of their own, where every port is free and loopback is all there is.
//
//	func TestMain(m *testing.M) { nstest.Main(m) }
//
// Root gets a network namespace. Anybody else gets a user namespace around it in which uid and gid stay what they are, with
// CAP_NET_ADMIN and CAP_NET_BIND_SERVICE (ambient, so programs that a test starts have them too). Where neither is allowed the
// tests run where they are, and those that need the namespace skip by [Need].
package nstest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// envOuter holds the network namespace that the tests were started in, as /proc/self/ns/net spells it. A process that finds
// itself elsewhere is inside; the same variable leaked into the outer namespace proves nothing and does no harm. "off"
// keeps the tests where they are, for a debugger.
const envOuter = "PORTD_NSTEST"

// Set once, by Enter, before any test runs.
var (
	private   bool
	errShared = errors.New("TestMain did not call nstest.Main")
)

// Main enters a network namespace, runs the tests in it and exits with their code. m is a *testing.M, or what wraps one.
func Main(m interface{ Run() int }) {
	Enter()
	os.Exit(m.Run())
}

// Enter returns inside a network namespace with loopback up, or where it was called if no namespace can be had. To get there it
// starts the test binary once more with the same arguments and descriptors 0 to 2, passes signals on, and exits as that one
// did. A TestMain with commands of its own (testscript) calls it from the Run that it wraps around m's, so that its commands stay
// in the namespace of the script that runs them.
func Enter() {
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		errShared = err
		return
	}
	switch outer := os.Getenv(envOuter); {
	case outer == "off":
		errShared = fmt.Errorf("%s=off", envOuter)
		return
	case outer != "" && outer != here:
		if err := loopbackUp(); err != nil {
			fmt.Fprintf(os.Stderr, "nstest: bring lo up: %v\n", err)
			os.Exit(1)
		}
		private = true
		return
	case isFuzzWorker():
		// Its coordinator failed to leave this namespace, and talks to it over descriptors that a re-execution would lose.
		errShared = errors.New("the fuzz coordinator has none")
		return
	}
	for _, attr := range ways() {
		if errShared = run(attr, here); errShared == nil {
			panic("unreachable: run exits when it succeeds")
		}
	}
}

// Private reports whether the tests run in a network namespace of their own.
func Private() bool { return private }

// Need skips t unless [Private].
func Need(t testing.TB) {
	t.Helper()
	if !private {
		t.Skipf("needs a network namespace of its own: %v", errShared)
	}
}

// ways are the kinds of namespace to try, best first.
func ways() []*syscall.SysProcAttr {
	uid, gid := os.Geteuid(), os.Getegid()
	user := &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE},
	}
	if uid != 0 {
		return []*syscall.SysProcAttr{user}
	}
	// Root in a container may lack CAP_SYS_ADMIN and still be let into a user namespace.
	return []*syscall.SysProcAttr{{Cloneflags: unix.CLONE_NEWNET}, user}
}

func isFuzzWorker() bool {
	for _, arg := range os.Args[1:] {
		if strings.HasPrefix(strings.TrimLeft(arg, "-"), "test.fuzzworker") {
			return true
		}
	}
	return false
}

// loopbackUp sets lo up if it is not: a new namespace starts with it down (netdevice(7)).
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo); err != nil {
		return err
	}
	// Asking needs no privilege, setting does: a test's child under another uid finds it up already.
	if lo.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
