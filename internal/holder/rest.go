package holder

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a holder is asked, one message each. It answers each with one, which begins with a reply.
type request struct {
	op   uint32
	_    uint32
	from uint64 // opOpen, opConnected
	tag  uint64 // of the answer; what a successor that died had asked is passed over
	// opGet: up to most numbers follow, 4 bytes each.
}

type reply struct {
	tag    uint64
	result int64 // 0 or a negative errno
	// opOpen, opConnected: chunk bits follow. opGet: the message carries the descriptors.
}

const (
	opGet       = 1 // descriptors of these numbers, all or none
	opOpen      = 2 // which of the chunk numbers from request.from on are open
	opConnected = 3 // which of them are sockets that are connected (getpeername(2))

	chunk = 4096
	most  = 250 // of 253 that the kernel takes in a message
)

// Rest is what a process has left behind: the table of a dead process, or of one that will leave it. It is for one goroutine at a time.
type Rest struct {
	fd, pidfd int
	tag       uint64
}

// Open is the rest that a holder keeps, by its socket as it was kept under its name; fd is the Rest's from then on, in any case. ESRCH
// means that the holder has ended, and with it all is closed.
func Open(name string, fd int) (*Rest, error) {
	r := &Rest{fd: fd, pidfd: -1, tag: rand.Uint64()}
	var err error
	if r.pidfd, err = unix.PidfdOpen(PIDOf(name), 0); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%s: pidfd_open: %w", name, err)
	}
	// As long as the other end is open, the number was not given to another process.
	if r.ended() {
		_ = unix.Close(fd)
		_ = unix.Close(r.pidfd)
		return nil, fmt.Errorf("%s: %w", name, unix.ESRCH)
	}
	_ = unix.PidfdSendSignal(r.pidfd, unix.SIGCONT, nil, 0) // somebody may have stopped it
	keepUp(PIDOf(name))
	return r, nil
}

// keepUp gives a holder the calling thread's priority where that is the higher one: who calls waits for it, also for it to close all that it has.
func keepUp(pid int) {
	ours, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // 20 for nice 0, and 40 for nice -20: getpriority(2)
	if err != nil {
		return
	}
	if theirs, err := unix.Getpriority(unix.PRIO_PROCESS, pid); err == nil && theirs < ours {
		_ = unix.Setpriority(unix.PRIO_PROCESS, pid, 20-ours)
	}
}

func (r *Rest) ended() bool {
	fds := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// Get is a descriptor, close-on-exec and the caller's, of what the number n stands for in the process. EBADF: it was not open.
func (r *Rest) Get(n int) (int, error) {
	fds, err := r.get([]int32{int32(n)})
	if err != nil {
		return -1, fmt.Errorf("descriptor %d of the process before: %w", n, err)
	}
	return fds[0], nil
}

// Take is Get of many, at less cost: descriptors in the order of the numbers, -1 for those that were not open. Beside an error it returns none.
func (r *Rest) Take(numbers []int) (_ []int, err error) {
	all := make([]int, 0, len(numbers))
	defer func() {
		if err != nil {
			closeAll(all)
		}
	}()
	for len(numbers) > 0 {
		some := make([]int32, min(most, len(numbers)))
		for i := range some {
			some[i] = int32(numbers[i])
		}
		fds, err := r.get(some)
		if errors.Is(err, unix.EBADF) {
			fds, err = r.each(some)
		}
		all = append(all, fds...)
		if err != nil {
			return nil, fmt.Errorf("descriptors of the process before: %w", err)
		}
		numbers = numbers[len(some):]
	}
	return all, nil
}

func (r *Rest) each(numbers []int32) ([]int, error) {
	fds := make([]int, 0, len(numbers))
	for _, n := range numbers {
		fd, err := r.get([]int32{n})
		switch {
		case errors.Is(err, unix.EBADF):
			fds = append(fds, -1)
		case err != nil:
			return fds, err
		default:
			fds = append(fds, fd[0])
		}
	}
	return fds, nil
}

func (r *Rest) get(numbers []int32) ([]int, error) {
	m, err := r.ask(opGet, 0, numbers)
	if err == nil && len(m.fds) != len(numbers) {
		closeAll(m.fds)
		return nil, fmt.Errorf("%d of %d came through: %w", len(m.fds), len(numbers), unix.EMFILE)
	}
	return m.fds, err
}

// Numbers are all that are open in the process, in ascending order.
func (r *Rest) Numbers() ([]int, error) { return r.scan(opOpen) }

// Connected are the numbers, in ascending order, of the process's sockets that are connected to something.
func (r *Rest) Connected() ([]int, error) { return r.scan(opConnected) }

func (r *Rest) scan(op uint32) ([]int, error) {
	var numbers []int
	for from, size := 0, r.size(); from < size; from += chunk {
		m, err := r.ask(op, uint64(from), nil)
		if err != nil {
			return nil, fmt.Errorf("descriptors from %d on of the process before: %w", from, err)
		}
		for i, word := range m.bits {
			for bit := range 64 {
				if word>>bit&1 == 1 {
					numbers = append(numbers, from+64*i+bit)
				}
			}
		}
	}
	return numbers, nil
}

// size is more than the highest number in the table. Where there is no /proc to tell it, it is as many as one may have open, within reason.
func (r *Rest) size() int {
	var limit unix.Rlimit
	size := 1 << 20
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		size = int(min(limit.Max, uint64(size)))
	}
	if info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", r.pidfd)); err == nil {
		if status, err := os.ReadFile("/proc/" + field(info, "Pid:") + "/status"); err == nil {
			if n, err := strconv.Atoi(field(status, "FDSize:")); err == nil {
				return n
			}
		}
	}
	return size
}

// field is the value of a line in the manner of proc(5).
func field(text []byte, name string) string {
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Close ends the holder and returns when it has ended, which closes all that it kept; what was got stays. One that does not end when told
// so is killed.
func (r *Rest) Close() error {
	defer unix.Close(r.fd)
	defer unix.Close(r.pidfd)
	_ = unix.Shutdown(r.fd, unix.SHUT_RDWR) // an end of file for the holder, whoever else has this end
	for range 2 {
		fds := []unix.PollFd{{Fd: int32(r.pidfd), Events: unix.POLLIN}}
		if n, err := poll(fds, patience); err != nil || n > 0 {
			return err
		}
		_ = unix.PidfdSendSignal(r.pidfd, unix.SIGKILL, nil, 0)
	}
	return errors.New("the holder of the process before has not ended")
}

type answer struct {
	fds  []int
	bits []uint64
}

func (r *Rest) ask(op uint32, from uint64, numbers []int32) (answer, error) {
	r.tag++
	b := make([]byte, 0, int(unsafe.Sizeof(request{}))+4*len(numbers))
	b = binary.NativeEndian.AppendUint32(b, op)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = binary.NativeEndian.AppendUint64(b, from)
	b = binary.NativeEndian.AppendUint64(b, r.tag)
	for _, n := range numbers {
		b = binary.NativeEndian.AppendUint32(b, uint32(n))
	}
	deadline := time.Now().Add(patience)
	if err := unix.Sendto(r.fd, b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil); err != nil {
		return answer{}, fmt.Errorf("ask the holder: %w", err)
	}
	for {
		n, err := poll([]unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}}, time.Until(deadline))
		if err == nil && n == 0 {
			err = unix.ETIMEDOUT
		}
		if err != nil {
			return answer{}, fmt.Errorf("wait for the holder: %w", err)
		}
		if a, mine, err := r.receive(); mine || err != nil {
			return a, err
		}
	}
}

// receive reads an answer; mine is false if it is to somebody else's question.
func (r *Rest) receive() (a answer, mine bool, err error) {
	const head = int(unsafe.Sizeof(reply{}))
	b := make([]byte, head+chunk/8)
	control := make([]byte, unix.CmsgSpace(4*most))
	n, cn, _, _, err := unix.Recvmsg(r.fd, b, control, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return a, false, nil
	}
	if err != nil {
		return a, false, fmt.Errorf("hear the holder: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:cn])
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			a.fds = append(a.fds, fds...)
		}
	}
	defer func() {
		if !mine || err != nil {
			closeAll(a.fds)
			a = answer{}
		}
	}()
	switch {
	case err != nil:
		return a, false, err
	case n == 0:
		return a, false, fmt.Errorf("hear the holder: %w", unix.EPIPE) // it has ended
	case n < head || binary.NativeEndian.Uint64(b) != r.tag:
		return a, false, nil
	}
	if result := int64(binary.NativeEndian.Uint64(b[8:])); result < 0 {
		return a, true, unix.Errno(-result)
	}
	for rest := b[head:n]; len(rest) >= 8; rest = rest[8:] {
		a.bits = append(a.bits, binary.NativeEndian.Uint64(rest))
	}
	return a, true, nil
}

func poll(fds []unix.PollFd, timeout time.Duration) (int, error) {
	for deadline := time.Now().Add(timeout); ; {
		n, err := unix.Poll(fds, int(max(0, time.Until(deadline).Milliseconds())))
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}
