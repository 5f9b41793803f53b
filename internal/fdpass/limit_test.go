package fdpass_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/portd/portd/internal/fdpass"
	"golang.org/x/sys/unix"
)

// short is what a process that had too few free descriptors received.
type short struct {
	Payload       string
	Inodes        []uint64
	FDs, Payloads bool // which truncation Recv told
	Err           string
}

// perform is the other process of TestFDsTruncated: it receives on descriptor 3 with numbers free for three more.
func perform(act string) {
	size := 64
	if act == "both" {
		size = 2
	}
	var got short
	buf := make([]byte, size)
	n, fds, err := recvWithFree(3, buf)
	got.Payload, got.Err = string(buf[:n]), fmt.Sprint(err)
	got.FDs, got.Payloads = errors.Is(err, fdpass.ErrFDsTruncated), errors.Is(err, fdpass.ErrPayloadTruncated)
	for _, fd := range fds {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			got.Err = err.Error()
		}
		got.Inodes = append(got.Inodes, st.Ino)
	}
	if err := json.NewEncoder(os.Stdout).Encode(got); err != nil {
		os.Exit(1)
	}
}

func recvWithFree(free int, buf []byte) (int, []int, error) {
	// The limit is on the number: find one with exactly so many free numbers below it.
	limit := 4
	for ; free > 0; limit++ {
		if _, err := unix.FcntlInt(uintptr(limit), unix.F_GETFD, 0); err != nil {
			free--
		}
	}
	rlimit := unix.Rlimit{Cur: uint64(limit), Max: uint64(limit)}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &rlimit); err != nil {
		return 0, nil, err
	}
	return new(fdpass.Receiver).Recv(3, buf)
}

func TestFDsTruncated(t *testing.T) {
	for act, want := range map[string]short{
		"fds":  {Payload: "hello", FDs: true, Err: fdpass.ErrFDsTruncated.Error()},
		"both": {Payload: "he", FDs: true, Payloads: true, Err: "message is longer than the buffer\ndescriptors of the message were lost"},
	} {
		t.Run(act, func(t *testing.T) {
			a, b := pair(t, unix.SOCK_SEQPACKET)
			sent := files(t, 8)
			want.Inodes = inodes(t, sent[:3])
			var s fdpass.Sender
			if err := s.Send(a, []byte("hello"), sent); err != nil {
				t.Fatal(err)
			}
			dup, err := unix.Dup(b)
			if err != nil {
				t.Fatal(err)
			}
			queue := os.NewFile(uintptr(dup), "queue")
			defer queue.Close()
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), "FDPASS_ACT="+act, "GORACE=atexit_sleep_ms=0")
			cmd.ExtraFiles = []*os.File{queue}
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			var got short
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
