package handoff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdbag"
	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/wire"
)

// A worker's bag holds all that a successor of portd needs to go on with it: the descriptors, and beside them what does not change
// about it. The keeper has a duplicate. In portd it stands for the duplicate of the worker's end of the queue, which is in it: so
// a worker takes four descriptors, as it would without (our end of the queue, the connection, the pidfd, and this).

// Places of descriptors in a bag. The worker's end of the queue is there for taking back what the worker did not receive.
const (
	bagQueue = iota
	bagKept
	bagPage
	bagConn
	inBag
)

// factsVersion is of the bytes in a bag. Fields may be added without a new one.
const factsVersion = 1

type facts struct {
	Version    int    `json:"v"`
	ID         string `json:"id"`
	Token      []byte `json:"token"`
	UID        uint32 `json:"uid"`
	GID        uint32 `json:"gid"`
	PID        int32  `json:"pid"`
	Netns      string `json:"netns"`
	Command    string `json:"command,omitempty"`
	Attached   int64  `json:"attached"` // nanoseconds since 1970
	Generation string `json:"generation,omitempty"`
	Allowed    int    `json:"allowed"` // messages that may wait

	Ledger int    `json:"ledger"` // offset of its place
	Tenant uint64 `json:"tenant"` // of that

	Reservations []string       `json:"res"`
	Serves       []servingFacts `json:"serves"`
}

type servingFacts struct {
	Reservation int     `json:"r,omitempty"` // number among the bag's
	Index       int     `json:"i,omitempty"`
	Socket      bool    `json:"s,omitempty"`
	Weight      uint16  `json:"w"`
	Priority    uint8   `json:"p,omitempty"`
	Lent        []share `json:"l,omitempty"`
}

// A share is a socket that a worker was lent.
type share struct {
	Port   uint16 `json:"n,omitempty"`
	Member int    `json:"m,omitempty"`
	Loan   uint64 `json:"l,omitempty"`
}

func factsOf(w *worker, parts []part) facts {
	f := facts{
		Version: factsVersion, ID: w.id, Token: w.token, UID: w.caller.UID, GID: w.caller.GID, PID: w.caller.PID, Netns: w.caller.Netns,
		Command: w.command, Attached: w.attached.UnixNano(), Generation: w.generation, Allowed: w.allowed, Ledger: w.at, Tenant: w.tenant,
	}
	number := map[string]int{}
	for _, part := range parts {
		id := part.key.Reservation
		n, known := number[id]
		if !known {
			n = len(f.Reservations)
			number[id] = n
			f.Reservations = append(f.Reservations, id)
		}
		s := servingFacts{Reservation: n, Index: part.key.Index, Socket: part.socket, Weight: part.weight, Priority: part.priority}
		for _, o := range part.sockets {
			s.Lent = append(s.Lent, share{o.Endpoint.First, o.Member, o.Loan})
		}
		f.Serves = append(f.Serves, s)
	}
	return f
}

// parseFacts reads the bytes in a bag.
func parseFacts(payload []byte) (f facts, err error) {
	if err := json.Unmarshal(payload, &f); err != nil {
		return facts{}, fmt.Errorf("a worker's bag: %w", err)
	}
	if f.Version != factsVersion {
		return facts{}, fmt.Errorf("a worker's bag is of version %d, and this portd knows version %d", f.Version, factsVersion)
	}
	if f.ID == "" || f.Tenant == 0 || f.Allowed < 1 || len(f.Serves) == 0 {
		return facts{}, errors.New("a worker's bag says too little")
	}
	for _, s := range f.Serves {
		if s.Reservation < 0 || s.Reservation >= len(f.Reservations) || s.Index < 0 || s.Weight == 0 {
			return facts{}, errors.New("a worker's bag names a reservation that it does not have")
		}
	}
	return f, nil
}

func (f *facts) key(s *servingFacts) registry.SocketKey {
	return registry.SocketKey{Reservation: f.Reservations[s.Reservation], Index: s.Index}
}

func (f *facts) worker() *worker {
	return &worker{
		id: f.ID, token: f.Token, caller: registry.Caller{UID: f.UID, GID: f.GID, PID: f.PID, Netns: f.Netns}, command: f.Command,
		attached: time.Unix(0, f.Attached), generation: f.Generation, allowed: f.Allowed, queue: -1, kept: -1, slot: -1,
		at: f.Ledger,
	}
}

// keep gives the keeper all that there is of w, before w is told that it is attached. Without a keeper, or where a bag cannot be had, w is lost
// when portd dies, and attaches again.
func (p *Pool) keep(w *worker, parts []part, page int) {
	if p.cfg.Keep == nil {
		return
	}
	payload, err := json.Marshal(factsOf(w, parts))
	if w.at == 0 {
		err = errors.New("the ledger has no place for it")
	}
	if err == nil {
		err = control(w.conn, func(conn int) (err error) {
			w.bag, err = fdbag.Pack([]int{bagQueue: w.queue, bagKept: w.kept, bagPage: page, bagConn: conn}, payload)
			return err
		})
	}
	if err != nil {
		p.log.Warn("a worker cannot be kept; it would have to attach again if portd died", "worker", w.id, "err", err)
		return
	}
	w.name = p.cfg.Keep.NextName("w.")
	p.cfg.Keep.Put(w.name, w.bag.FD())
}

// kept is one descriptor too many for a worker that has a bag.
func (w *worker) closeKept() {
	if w.bag != nil && w.kept >= 0 {
		closeRaw(w.kept)
		w.kept = -1
	}
}

// end is the worker's end of its queue, until done is called. The error is one of too few descriptors.
func (w *worker) end() (fd int, done func(), err error) {
	if w.kept >= 0 || w.bag == nil {
		return w.kept, func() {}, nil
	}
	fds, err := w.bag.Open()
	if err != nil {
		return -1, nil, err
	}
	for i, fd := range fds {
		if i != bagKept {
			closeRaw(fd)
		}
	}
	return fds[bagKept], func() { closeRaw(fds[bagKept]) }, nil
}

// forget puts away what is left of a worker that is gone. The keeper is told by somebody who has time for it; that the attachment has
// ended its peer knows already.
func (p *Pool) forget(w *worker) {
	p.copyOut(w)
	if w.at != 0 && p.ledger != nil {
		p.ledger.free(w.at, len(w.serves))
	}
	w.at = 0
	if w.kept >= 0 {
		closeRaw(w.kept)
		w.kept = -1
	}
	if w.bag != nil {
		p.discard(w.name, w.bag.FD())
		w.bag = nil
	}
}

// discard has the keeper let go of an item, and closes ours.
func (p *Pool) discard(name string, fd int) {
	p.discarded = append(p.discarded, item{name, fd})
	select {
	case p.burial <- struct{}{}:
	default: // it is told already
	}
}

type item struct {
	name string
	fd   int
}

// undertaker tells the keeper of what it need not keep any more, until ctx ends.
func (p *Pool) undertaker(ctx context.Context) {
	for {
		select {
		case <-p.burial:
			p.undertake()
		case <-ctx.Done():
			return
		}
	}
}

func (p *Pool) undertake() {
	p.mu.Lock()
	all, unwanted := p.discarded, p.unwanted
	p.discarded, p.unwanted = nil, nil
	p.mu.Unlock()
	p.giveBack(unwanted)
	if len(all) == 0 {
		return
	}
	names := make([]string, len(all))
	for i, it := range all {
		names[i] = it.name
	}
	p.cfg.Keep.Remove(names...)
	for _, it := range all {
		closeRaw(it.fd)
	}
}

// hangUp ends a connection for its peer, whoever else has it, unless that is to go on with it.
func (p *Pool) hangUp(conn *net.UnixConn) {
	if !p.abandoned.Load() {
		_ = control(conn, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) })
	}
	_ = conn.Close()
}

func control(conn *net.UnixConn, f func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// unpack makes what a bag has into a worker. bag is the worker's from then on; where there is an error it stays the caller's.
func unpack(bag *fdbag.Bag) (w *worker, f facts, err error) {
	payload, err := bag.Payload()
	if err != nil {
		return nil, f, err
	}
	if f, err = parseFacts(payload); err != nil {
		return nil, f, err
	}
	fds, err := bag.Open()
	if err != nil {
		return nil, f, err
	}
	defer func() {
		for i, fd := range fds {
			if i != bagQueue || err != nil {
				closeRaw(fd)
			}
		}
	}()
	if len(fds) != inBag {
		return nil, f, fmt.Errorf("a worker's bag has %d descriptors, want %d", len(fds), inBag)
	}
	w = f.worker()
	conn := fds[bagConn]
	fds[bagConn] = -1
	if w.conn, err = unixConn(conn); err != nil {
		return nil, f, err
	}
	if w.mem, err = fdpass.MapPage(fds[bagPage], wire.PageSize); err != nil {
		_ = w.conn.Close()
		return nil, f, err
	}
	w.page, _ = wire.NewPage(w.mem)
	w.queue, w.bag = fds[bagQueue], bag
	return w, f, nil
}

// unixConn is a connection on fd, which it takes.
func unixConn(fd int) (*net.UnixConn, error) {
	file := os.NewFile(uintptr(fd), "attach connection")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, errors.New("a worker's connection is not one of a unix socket")
	}
	return conn, nil
}
