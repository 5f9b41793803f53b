package clients_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/nstest"
)

// message is one of some type and body, padded as portd pads what it sends into a queue.
func message(kind, flags uint16, body ...byte) []byte {
	m := binary.LittleEndian.AppendUint16(nil, kind)
	m = binary.LittleEndian.AppendUint16(m, flags)
	m = binary.LittleEndian.AppendUint32(m, uint32(8+len(body)))
	return append(m, body...)
}

// later is what no version yet knows: an extension of a type that nobody has named.
var later = []byte{0x77, 0x77, 3, 0, 1, 2, 3}

// A worker skips what later versions of portd say beside what it knows: types of messages, flags, longer entries, extensions.
func TestLaterPortd(t *testing.T) {
	nstest.Need(t)
	for _, l := range languages {
		t.Run(l.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "portd")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			h := &host{T: t, dir: dir, socket: filepath.Join(dir, "portd.sock")}
			ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: filepath.Join(dir, "handoff.sock")})
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			_ = ln.SetDeadline(time.Now().Add(30 * time.Second))

			argv := append(l.command(h), "--socket", h.socket, "tcp/8080")
			w := exec.Command(argv[0], argv[1:]...)
			w.Stderr = t.Output()
			if err := w.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = w.Process.Kill() }()
			conn, err := ln.AcceptUnix()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			buf := make([]byte, 1<<16)
			n, err := conn.Read(buf)
			if err != nil || !bytes.Equal(buf[:n], examples(t)["attach"]) {
				t.Fatalf("%v; the worker begins with\n%x, in docs/PROTOCOL.md it is\n%x", err, buf[:n], examples(t)["attach"])
			}
			say := func(m []byte, fds ...int) {
				t.Helper()
				if err := fdpass.SendConn(conn, m, fds); err != nil {
					t.Fatal(err)
				}
			}

			queue, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(queue[0])
			pageFD, page, err := fdpass.SealedPage(4096)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pageFD)
			defer unix.Munmap(page)
			binary.NativeEndian.PutUint32(page[0:], 0x64747270)
			binary.NativeEndian.PutUint32(page[4:], 1)
			binary.NativeEndian.PutUint32(page[8:], 4096)

			// The one listener of the example, its entry and its message longer than they are today.
			body := bytes.Clone(examples(t)["attached"][8:])
			entry := len(body) - 50
			binary.LittleEndian.PutUint16(body[entry:], uint16(50+len(later)))
			body = append(append(body, later...), later...)
			say(message(99, 0, later...), pageFD)
			say(message(2, 0x8000, body...), queue[1], pageFD)
			unix.Close(queue[1])
			say(message(99, 3), pageFD)
			say(message(7, 0, make([]byte, 16)...)) // an answer to a DRAIN that nobody said

			// The first connection of the example, with an address of a family to come. Others lie around it.
			served, ours := tcpPair(t)
			k := bytes.Clone(examples(t)["connections"][8:][:12])
			k[8] = 1
			e := bytes.Clone(examples(t)["connections"][20:][:28-2])
			e = append(append(e, 9, 4, 1, 2, 3, 4), later...)
			binary.LittleEndian.PutUint16(e, uint16(len(e)))
			m := message(16, 0x8000, append(append(k, e...), later...)...)
			into := func(m []byte, fds ...int) {
				t.Helper()
				var rights []byte
				if len(fds) > 0 {
					rights = unix.UnixRights(fds...)
				}
				if err := unix.Sendmsg(queue[0], append(m, make([]byte, 1200-len(m))...), rights, nil, 0); err != nil {
					t.Fatal(err)
				}
			}
			into(message(77, 0, later...), pageFD)
			into(message(17, 0))
			into(m, served)
			unix.Close(served)
			if err := ask(ours); err != nil {
				t.Fatal(err)
			}
			ours.Close()
			at := func(offset int) uint64 { return binary.NativeEndian.Uint64(page[offset:]) }
			h.wait("the worker's counts", func() bool { return at(192) == 1 && at(128)%2 == 0 })
			if at(136) != 1 || at(144) != 1 || at(128) < 6 {
				t.Errorf("sequence %d, received %d, turn %d", at(136), at(144), at(128))
			}

			say(message(8, 0, append([]byte{0, 0, 0, 0, 4, 0, 'g', 'o', 'n', 'e'}, later...)...))
			conn.Close()
			unix.Close(queue[0])
			if err := w.Wait(); err != nil {
				t.Errorf("with its last listener the worker ends by %v", err)
			}
		})
	}
}

// tcpPair is a connection: the server's descriptor, nonblocking, and the client's end.
func tcpPair(t *testing.T) (int, net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ours, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	if err := raw.Control(func(f uintptr) { fd, err = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 0) }); err != nil || fd < 0 {
		t.Fatal(fmt.Errorf("dup: %w", err))
	}
	return fd, ours
}
