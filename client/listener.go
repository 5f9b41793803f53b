package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

// A Listener is a net.Listener whose connections portd accepted. While portd is away it goes on by itself when portd is back.
type Listener struct {
	cfg     AttachConfig
	log     *slog.Logger
	addr    net.Addr
	onClose func() error // ends what was made for this listener; may be nil

	// accepting is held by the one Accept that receives; the others wait for what it leaves over.
	accepting sync.Mutex
	batch     []*conn   // received and not accepted yet; guarded by accepting
	gaveBack  time.Time // last; guarded by accepting

	mu      sync.Mutex
	current *Attachment
	queues  []*queue      // to be read to their end, the oldest first
	changed chan struct{} // closed and replaced when what is above changes
	final   error         // no queue will be added
	closed  bool

	standings []standing // of the wishes
	serves    []served   // of the current attachment
	pages     []*page    // that connections may be open of

	stop    context.CancelFunc
	stopped chan struct{} // closed when follow has returned
}

// Join attaches to listeners that are there already, over the hand-off socket alone. A log may be nil.
func Join(ctx context.Context, cfg AttachConfig, log *slog.Logger) (*Listener, error) {
	a, err := Attach(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	l := &Listener{cfg: cfg, log: log, changed: make(chan struct{}), stopped: make(chan struct{})}
	l.addr = &net.TCPAddr{}
	if len(a.Listeners) > 0 {
		l.addr = listenAddr(a.Listeners[0].Endpoint)
	}
	for _, w := range cfg.Wishes {
		l.standings = append(l.standings, standing{notReady: w.NotReady})
	}
	l.add(a, l.standings)
	follow, stop := context.WithCancel(context.Background())
	l.stop = stop
	go l.follow(follow, a)
	return l, nil
}

// Accept returns the next connection. After Close it first gives out what this process had received already, a few at most, and
// then net.ErrClosed; http.Server's Shutdown waits for that.
func (l *Listener) Accept() (net.Conn, error) {
	l.accepting.Lock()
	defer l.accepting.Unlock()
	for len(l.batch) == 0 {
		// Let those run who have connections, before taking more: what is not taken can still go to another worker.
		runtime.Gosched()
		q, changed, err := l.front()
		if err != nil {
			return nil, &net.OpError{Op: "accept", Net: l.addr.Network(), Addr: l.addr, Err: err}
		}
		if q == nil {
			<-changed
			continue
		}
		l.batch, err = q.take(l.batch[:0])
		switch {
		case err == nil:
		case err == io.EOF:
			l.finished(q)
		case errors.Is(err, net.ErrClosed):
		case errors.Is(err, errNoDescriptors):
			if err == errGiveBack {
				l.giveBack(q)
			}
			return nil, l.exhausted()
		default:
			l.log.Error("connections that portd handed over were lost", "err", err)
			if len(l.batch) == 0 && errors.Is(err, unix.EMFILE) {
				return nil, l.exhausted()
			}
		}
	}
	c := l.batch[0]
	var out net.Conn = c
	if l.cfg.TCPConn && c.unix == nil {
		tcp, err := TCPConn(c)
		if err != nil {
			return nil, l.exhausted() // c is the next one still
		}
		out = tcp
	}
	l.batch[0] = nil
	l.batch = l.batch[1:]
	return out, nil
}

// exhausted is EMFILE as net's listener says it, for which servers wait a moment; others get the connections meanwhile.
func (l *Listener) exhausted() error {
	return &net.OpError{Op: "accept", Net: l.addr.Network(), Addr: l.addr, Err: os.NewSyscallError("recvmsg", unix.EMFILE)}
}

// betweenGiveBacks keeps a server that does not wait, and comes and goes at its limit, far from what portd takes for a flood.
const betweenGiveBacks = 4 * time.Millisecond

// giveBack lets others have what lies in q. The queue of an attachment that is over is read later.
func (l *Listener) giveBack(q *queue) {
	time.Sleep(betweenGiveBacks - time.Since(l.gaveBack))
	l.gaveBack = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current.queue == q {
		l.current.giveBack()
	}
}

// front is the queue to receive from, or a channel that says when to ask again, or the end.
func (l *Listener) front() (*queue, <-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nil, nil, net.ErrClosed
	case len(l.queues) > 0:
		return l.queues[0], nil, nil
	case l.final != nil:
		return nil, nil, l.final
	}
	return nil, l.changed, nil
}

func (l *Listener) change() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// add makes a the current attachment, whose wishes were asked for with these standings.
func (l *Listener) add(a *Attachment, asked []standing) (ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.serving(a, asked)
	l.queues = append(l.queues, a.queue)
	l.change()
	return true
}

// finished drops a queue that has been read to its end.
func (l *Listener) finished(q *queue) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queues) > 0 && l.queues[0] == q {
		l.queues = l.queues[1:]
	}
	q.Close()
	l.change()
}

// follow listens to what portd says, and attaches again when portd has gone away.
func (l *Listener) follow(ctx context.Context, a *Attachment) {
	defer close(l.stopped)
	for a != nil {
		gone := l.heed(a)
		_ = a.conn.Close() // its queue is read to its end by Accept
		if ctx.Err() != nil {
			return
		}
		if gone != nil {
			l.finish(gone)
			return
		}
		a = l.attachAgain(ctx, a.Token)
	}
	if leaves, _ := l.leaves(); leaves {
		l.finish(net.ErrClosed)
	}
}

// heed returns when the attachment's connection has ended: with the reason where portd has said that nothing will come any more.
func (l *Listener) heed(a *Attachment) error {
	left := len(a.Listeners)
	var gone error
	for {
		m, err := a.next()
		if err != nil {
			if left > 0 {
				gone = nil
			}
			return gone
		}
		switch m := m.(type) {
		case wire.ListenerGone:
			left--
			gone = fmt.Errorf("the listener is gone: %s", m.Reason)
			l.log.Warn("a listener is gone", "listener", m.Listener, "reason", m.Reason)
			l.over(a, m.Listener, true)
		case wire.Drained:
			l.over(a, m.Listener, false)
		case drainNumber:
			l.toldToDrain(a, uint32(m))
		}
	}
}

const (
	shortestWait = 10 * time.Millisecond
	longestWait  = time.Second
)

func (l *Listener) attachAgain(ctx context.Context, token []byte) *Attachment {
	ctx, done := l.untilLeaving(ctx)
	defer done()
	l.log.Warn("portd is gone; attaching again")
	for wait := shortestWait; ctx.Err() == nil; wait = min(2*wait, longestWait) {
		cfg, asked := l.wanted()
		cfg.Token = token
		a, err := Attach(ctx, cfg)
		switch {
		case err == nil:
			if !l.add(a, asked) {
				_ = a.Close()
				return nil
			}
			l.log.Info("attached again", "worker", a.ID, "queue_kept", a.Kept)
			return a
		case ctx.Err() != nil:
			return nil
		case final(err):
			l.finish(err)
			return nil
		}
		l.log.Debug("cannot attach yet", "err", err)
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-ctx.Done():
		}
	}
	return nil
}

// final says whether trying again would be of no use, by docs/PROTOCOL.md. What does not listen now may do so later.
func final(err error) bool {
	var refused *Error
	if !errors.As(err, &refused) {
		return false
	}
	switch refused.status.Code() {
	case codes.ResourceExhausted, codes.FailedPrecondition, codes.Internal, codes.Unavailable:
		return false
	}
	return true
}

func (l *Listener) finish(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.final == nil {
		l.final = err
	}
	l.change()
}

// leftoverTime is how long what had been received may wait to be accepted after Close.
const leftoverTime = time.Second

// Close ends Accept and the attachment. What portd had sent and this process had not received goes to other workers.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return net.ErrClosed
	}
	l.closed = true
	current, queues := l.current, l.queues
	l.queues = nil
	l.change()
	l.mu.Unlock()

	l.stop()
	_ = current.conn.Close()
	for _, q := range queues {
		q.Close()
	}
	<-l.stopped
	time.AfterFunc(leftoverTime, func() {
		l.accepting.Lock()
		defer l.accepting.Unlock()
		for _, c := range l.batch {
			_ = c.Close()
		}
		l.batch = nil
	})
	if l.onClose != nil {
		return l.onClose()
	}
	return nil
}

// Addr is the endpoint that portd listens on; the first one where there are several.
func (l *Listener) Addr() net.Addr { return l.addr }

// listenAddr is the first address of an endpoint, by its text: "tcp/[::1]:8080-8089".
func listenAddr(endpoint string) net.Addr {
	e, err := registry.ParseEndpoint(endpoint)
	if err != nil { // of a portd that spells endpoints in a way of its own
		return &net.TCPAddr{IP: net.IPv6unspecified}
	}
	if e.Proto == registry.Unix {
		return &net.UnixAddr{Net: "unix", Name: e.Path}
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(e.Addr, e.First))
}
