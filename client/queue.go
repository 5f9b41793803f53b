package client

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

// A queue is the receiving end of what portd hands over, with the page that goes with it. One goroutine receives at a time.
type queue struct {
	file *os.File
	raw  syscall.RawConn
	page *page

	in      fdpass.Receiver
	packet  []byte
	receive func(fd uintptr) bool

	numbers    descriptors
	peeked     []byte // nil until it is needed
	duplicates []int

	// What receive got.
	n   int
	fds []int
	err error
}

// A page is the memory shared with portd. Connections outlive their queue and count on it when they are closed, so it is
// unmapped when nothing refers to it any more.
type page struct{ wire.Page }

// newQueue takes ownership of fd if it succeeds; pageFD stays the caller's.
func newQueue(fd, pageFD int) (*queue, error) {
	mem, err := fdpass.MapPage(pageFD, wire.PageSize)
	if err != nil {
		return nil, err
	}
	shared, err := wire.NewPage(mem)
	if err == nil {
		err = shared.Check()
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		_ = unix.Munmap(mem)
		return nil, err
	}
	p := &page{shared}
	runtime.AddCleanup(p, func(mem []byte) { _ = unix.Munmap(mem) }, mem)

	q := &queue{
		file: os.NewFile(uintptr(fd), "portd queue"), page: p,
		packet: make([]byte, wire.MaxMessage),
	}
	if q.raw, err = q.file.SyscallConn(); err != nil {
		return nil, err
	}
	q.receive = q.receiveFrom
	return q, nil
}

func (q *queue) Close() { _ = q.file.Close() }

// errNoDescriptors: a message waits, and this process has too few free descriptors for it. The first one of a row is errGiveBack.
var (
	errNoDescriptors = errors.New("too few free descriptors")
	errGiveBack      = fmt.Errorf("a message was left where it is: %w", errNoDescriptors)
)

// receiveFrom takes a message if there is one. The netpoller reports edges: only EAGAIN of this very call may park.
func (q *queue) receiveFrom(fd uintptr) bool {
	if q.numbers.none(int(fd)) {
		q.n, q.fds, q.err = 0, nil, errNoDescriptors
		return true
	}
	q.page.BeginTake()
	if q.numbers.scarce() {
		q.lookAndTake(int(fd))
	} else {
		q.n, q.fds, q.err = q.in.Recv(int(fd), q.packet)
	}
	if q.n == 0 {
		q.page.EndTake(0, 0)
	}
	return q.err != unix.EAGAIN
}

// lookAndTake takes a message whose descriptors this process has numbers for, and leaves another one where it is. They are had already, as
// duplicates, when it takes the message; portd may have taken that back meanwhile.
func (q *queue) lookAndTake(fd int) {
	if q.peeked == nil {
		q.peeked = make([]byte, wire.MaxMessage)
	}
	q.n, q.fds = 0, nil
	seen, fds, err := q.in.Peek(fd, q.peeked)
	if errors.Is(err, fdpass.ErrFDsTruncated) {
		closeEach(fds)
		q.numbers.exhausted()
		q.err = errGiveBack
		return
	} else if err != nil {
		closeEach(fds)
		q.err = err
		return
	}
	q.duplicates = append(q.duplicates[:0], fds...)
	q.n, q.fds, q.err = q.in.Recv(fd, q.packet)
	if q.n > 0 && bytes.Equal(q.packet[:q.n], q.peeked[:seen]) {
		closeEach(q.fds)
		q.fds, q.err = q.duplicates, nil
		return
	}
	closeEach(q.duplicates)
}

// take waits for a message and appends its connections to dst. io.EOF: nothing more will come. net.ErrClosed: the queue was
// closed here. An errNoDescriptors: the message was left to others.
func (q *queue) take(dst []*conn) ([]*conn, error) {
	if err := q.raw.Read(q.receive); err != nil {
		return dst, net.ErrClosed
	}
	if q.n == 0 {
		return dst, q.err
	}
	fds := q.fds
	m, err := wire.Parse(q.packet[:q.n])
	var f wire.Frame
	if err == nil && m.Type == wire.TypeConnections {
		f, err = wire.DecodeFrame(m)
	}
	q.page.EndTake(f.Sequence, f.Count)
	if err == nil && f.Count != len(fds) {
		err = fmt.Errorf("%d of %d descriptors came: %w", len(fds), f.Count, unix.EMFILE)
		q.numbers.exhausted()
	}
	q.numbers.budget -= f.Count
	var c wire.Connection
	for len(fds) > 0 && f.Next(&c) {
		dst = append(dst, newConn(fds[0], &c, q.page))
		fds = fds[1:]
	}
	// Those that did not come were closed by the kernel; they are done with.
	missing := 0
	for f.Next(&c) {
		missing++
	}
	q.page.AddDone(uint64(missing))
	closeEach(fds)
	return dst, err
}
