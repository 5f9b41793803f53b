package handoff

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/peercred"
	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/shortage"
	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
)

const (
	defaultRoom = 1
	maxRoom     = 64
)

// A refusal is an error whose sentence goes to the worker.
type refusal struct {
	code wire.Code
	text string
}

func (r *refusal) Error() string { return r.text }

func refusef(code wire.Code, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

var codeOf = []struct {
	is   error
	code wire.Code
}{
	{registry.ErrInvalid, wire.CodeInvalid},
	{registry.ErrDenied, wire.CodeDenied},
	{registry.ErrNotFound, wire.CodeNotFound},
	{registry.ErrTaken, wire.CodeFailedPrecondition},
	{registry.ErrExhausted, wire.CodeExhausted},
	{registry.ErrUnsupported, wire.CodeFailedPrecondition},
	{registry.ErrUnavailable, wire.CodeUnavailable},
	{registry.ErrConflict, wire.CodeUnavailable},
}

// A part is one endpoint of a wish that was granted.
type part struct {
	wish     int
	key      registry.SocketKey
	owner    registry.Principal
	endpoint registry.Endpoint
	socket   bool
	state    State
	weight   uint16
	priority uint8
	sockets  []registry.Socket // lent
	gone     bool              // it is not to be had any more
}

// handshake reads what the worker wants and attaches it. Without a worker it has refused, or there was nobody to refuse to. What
// was lent is the caller's to give back in either case.
func (p *Pool) handshake(ctx context.Context, conn *net.UnixConn, cred peercred.Cred) (w *worker, lent []loan) {
	_ = conn.SetDeadline(time.Now().Add(p.patience))
	buf := make([]byte, wire.MaxMessage)
	p.greet(conn, true)
	n, err := conn.Read(buf)
	p.greet(conn, false)
	if err != nil {
		return nil, nil
	}
	m, err := wire.Parse(buf[:n])
	if err == nil && m.Type != wire.TypeAttach {
		err = fmt.Errorf("%w: the first message is ATTACH", wire.ErrMalformed)
	}
	var want wire.Attach
	if err == nil {
		want, err = wire.DecodeAttach(m)
	}
	if err != nil {
		p.refuse(conn, wire.CodeInvalid, err.Error())
		return nil, nil
	}
	who, leave, err := p.caller(conn, cred)
	if err == nil {
		defer leave()
		w, lent, err = p.grant(ctx, conn, who, want)
	}
	if err != nil {
		code, text := p.explain(err)
		p.refuse(conn, code, text)
		return nil, lent
	}
	_ = conn.SetDeadline(time.Time{})
	return w, lent
}

// explain turns an error into what a stranger may read.
func (p *Pool) explain(err error) (wire.Code, string) {
	var r *refusal
	if errors.As(err, &r) {
		return r.code, r.text
	}
	for _, c := range codeOf {
		if errors.Is(err, c.is) {
			return c.code, err.Error()
		}
	}
	p.log.Error("cannot attach a worker", "err", err)
	return wire.CodeInternal, "internal error; portd's log says more"
}

func (p *Pool) grant(ctx context.Context, conn *net.UnixConn, c registry.Caller, want wire.Attach) (_ *worker, lent []loan, err error) {
	if want.MinVersion > wire.Version {
		return nil, nil, refusef(wire.CodeVersion, "this portd speaks version %d of the hand-off protocol, and the worker %d to %d: upgrade portd",
			wire.Version, want.MinVersion, want.MaxVersion)
	}
	parts, err := p.resolve(ctx, c, want.Wishes)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		for _, part := range parts {
			for _, s := range part.sockets {
				_ = unix.Close(s.FD)
			}
		}
	}()
	defer p.arrive(parts)()
	for i := range parts {
		if !parts[i].socket {
			continue
		}
		if parts[i].sockets, err = p.cfg.Lender.Lend(parts[i].key); err != nil {
			return nil, lent, err
		}
		lent = append(lent, loan{parts[i].key, parts[i].sockets})
	}
	w, err := p.newWorker(conn, c, want)
	if err != nil {
		return nil, lent, err
	}
	if err := p.join(w, parts); err != nil {
		return nil, lent, err
	}
	// A release between the look and the joining has told nobody: look again now that Released would find the worker.
	for _, wish := range want.Wishes {
		if _, err := p.cfg.Attacher.Attach(ctx, c, wish.Reference); err != nil {
			p.mu.Lock()
			p.detach(w, leaveQueue, "its reservation was released")
			p.unjoin(w)
			p.mu.Unlock()
			return nil, lent, err
		}
	}
	return w, lent, nil
}

// resolve asks the registry for every wish, and turns it into endpoints.
func (p *Pool) resolve(ctx context.Context, c registry.Caller, wishes []wire.Wish) (parts []part, err error) {
	for i, wish := range wishes {
		if wish.Want != wire.WantConnections && wish.Want != wire.WantSocket {
			return nil, refusef(wire.CodeInvalid, "wish %d wants %d; a worker wants 1 (connections) or 2 (the socket itself)", i, wish.Want)
		}
		res, err := p.cfg.Attacher.Attach(ctx, c, wish.Reference)
		if err != nil {
			return nil, err
		}
		state := Attached
		switch {
		case wish.Draining:
			state = Draining
		case wish.Ready:
			state = Ready
		}
		got, err := choose(res, wish)
		if err != nil {
			return nil, err
		}
		for _, index := range got {
			key := registry.SocketKey{Reservation: res.ID, Index: index}
			if slices.ContainsFunc(parts, func(p part) bool { return p.key == key }) {
				return nil, refusef(wire.CodeInvalid, "%v is wished for twice", res.Assigned[index].Endpoint)
			}
			parts = append(parts, part{
				wish: i, key: key, owner: res.Owner, endpoint: res.Assigned[index].Endpoint,
				socket: wish.Want == wire.WantSocket, state: state, weight: max(wish.Weight, 1), priority: wish.Priority,
			})
		}
	}
	return parts, nil
}

// choose says which endpoints of a reservation a wish means: all that can do what it wants.
func choose(res *registry.Reservation, wish wire.Wish) (indexes []int, err error) {
	if res.Spec.Mode == registry.Recorded {
		return nil, refusef(wire.CodeFailedPrecondition, "%s is recorded only, portd has no socket of it; a program binds it itself", res.Endpoints())
	}
	for i, a := range res.Assigned {
		switch {
		case !meant(a.Endpoint, wish.Reference):
		case wish.Want == wire.WantSocket && (a.Listen != nil || !a.Endpoint.Proto.Streams()),
			wish.Want == wire.WantConnections && a.Listen != nil:
			indexes = append(indexes, i)
		case err != nil:
		case !a.Endpoint.Proto.Streams():
			err = refusef(wire.CodeFailedPrecondition, "%v has no connections to take, it is %v: take the socket itself", a.Endpoint, a.Endpoint.Proto)
		default:
			err = refusef(wire.CodeFailedPrecondition, "%v does not listen: portctl listen %v", a.Endpoint, a.Endpoint)
		}
	}
	switch {
	case len(indexes) > 0:
		return indexes, nil
	case err == nil:
		err = refusef(wire.CodeNotFound, "%s is not an endpoint of %s", wish.Reference, res.Endpoints())
	}
	return nil, err
}

// newWorker makes the queue and the page of an attachment. It belongs to nobody yet: join makes it count.
func (p *Pool) newWorker(conn *net.UnixConn, c registry.Caller, want wire.Attach) (*worker, error) {
	room := int(want.Room)
	if room == 0 {
		room = defaultRoom
	}
	w := &worker{
		id: newID(), token: make([]byte, 16), caller: c, command: command(c.PID), attached: time.Now(),
		conn: conn, queue: -1, kept: -1, generation: want.Generation, workerPlace: &workerPlace{},
	}
	_, _ = rand.Read(w.token) // never fails
	var err error
	if w.queue, w.kept, w.allowed, err = queuePair(p.truesize, min(room, maxRoom)); err != nil {
		return nil, exhausted(err)
	}
	return w, nil
}

// join makes w a worker of its parts and sends it ATTACHED, before anything else can be sent to it.
func (p *Pool) join(w *worker, parts []part) (err error) {
	page, mem, err := fdpass.SealedPage(wire.PageSize)
	if err != nil {
		_, _ = unix.Close(w.queue), unix.Close(w.kept)
		return exhausted(err)
	}
	defer unix.Close(page)
	w.mem = mem
	w.page, _ = wire.NewPage(mem)
	w.page.Init()
	joined := false
	defer func() {
		if !joined {
			closeRaw(w.queue)
			_ = unix.Munmap(mem)
			p.mu.Lock()
			defer p.mu.Unlock()
			p.forget(w)
		}
	}()
	answer, fds := w.answer(parts, page)
	if len(answer[0]) > wire.MaxMessage {
		return refusef(wire.CodeExhausted, "these are too many listeners for one attachment: attach several times")
	}
	if err := p.admit(w, parts); err != nil {
		return err
	}
	p.keep(w, parts, page) // which may wait for the keeper

	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.mayAttach(w.caller); err != nil {
		return err
	}
	if err := p.enroll(w, parts); err != nil {
		return err
	}
	joined = true
	for _, message := range answer {
		n := min(len(fds), wire.MaxFDs)
		p.tell(w, message, fds[:n]...)
		fds = fds[n:]
	}
	w.standing = attached
	w.closeKept()
	p.log.Info("worker attached", "worker", w.id, "pid", w.caller.PID, "owner", w.caller.Principal(), "endpoint", endpoints(parts))
	return nil
}

// admit makes w's place in the ledger, if it may attach.
func (p *Pool) admit(w *worker, parts []part) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.mayAttach(w.caller); err != nil {
		return err
	}
	var serves []servingPlace
	w.at, w.workerPlace, serves = p.ledger.worker(len(parts))
	if w.at != 0 {
		p.tenants++
		w.tenant = uint64(p.ledger.incarnation)<<32 | p.tenants
		w.mine = w.tenant
	}
	for i, part := range parts {
		serves[i].state = part.state
		w.serves = append(w.serves, &serving{worker: w, number: uint32(i), servingPlace: &serves[i]})
	}
	return nil
}

// enroll makes w one of the workers.
func (p *Pool) enroll(w *worker, parts []part) (err error) {
	if w.slot, err = p.watch(w.queue, unix.EPOLLOUT, slot{worker: w}); err != nil {
		return err
	}
	p.workers[w.id] = w
	p.tally(w.caller.UID, func(t *tally) { t.attached++ })
	for i, part := range parts {
		s := w.serves[i]
		s.endpoint, s.socket, s.lent, s.weight, s.priority = part.endpoint, part.socket, part.sockets, part.weight, part.priority
		if s.gone {
			s.listener = &listener{key: part.key, counts: &counts{}} // of nobody
			continue
		}
		s.listener = p.listener(part.key)
		s.listener.owner = part.owner
		if !s.listener.listening {
			s.listener.endpoint = part.endpoint
		}
		if s.socket {
			s.listener.borrowers++
			p.share(s.listener)
		} else {
			s.listener.enter(s)
		}
		p.attend(s.listener)
	}
	w.setPatience()
	p.changed()
	return nil
}

// unjoin takes back what join counted.
func (p *Pool) unjoin(w *worker) { p.tally(w.caller.UID, func(t *tally) { t.attached-- }) }

// answer is the ATTACHED message and as many SOCKETS as the descriptors need.
func (w *worker) answer(parts []part, page int) (messages [][]byte, fds []int) {
	fds = []int{w.kept, page}
	a := wire.Attached{Version: wire.Version, Room: uint16(w.allowed), ID: w.id, Token: w.token}
	for i, part := range parts {
		a.Listeners = append(a.Listeners, wire.Listener{
			Number: uint32(i), Wish: uint16(part.wish), Index: uint16(part.key.Index), Sockets: uint32(len(part.sockets)),
			Reservation: part.key.Reservation, Endpoint: part.endpoint.String(),
		})
		for _, s := range part.sockets {
			fds = append(fds, s.FD)
		}
	}
	extra := (len(fds) - 1) / wire.MaxFDs
	a.More = extra > 0
	messages = append(messages, wire.AppendAttached(nil, a))
	for i := range extra {
		messages = append(messages, wire.AppendSockets(nil, i < extra-1))
	}
	return messages, fds
}

// mayAttach bounds what one user can take of portd's descriptors.
func (p *Pool) mayAttach(c registry.Caller) error {
	if p.closed {
		return refusef(wire.CodeUnavailable, "portd is stopping; try again")
	}
	limit := p.cfg.MaxPerUser
	if c.UID == 0 || c.UID == p.self {
		limit = p.mostOwn
	}
	if t := p.perUser[c.UID]; t != nil && t.attached >= limit {
		return refusef(wire.CodeExhausted, "%s has %d workers attached, and portd's descriptors allow no more: stop some, or raise portd's RLIMIT_NOFILE (now %d)",
			registry.UserName(c.UID), t.attached, p.nofile)
	}
	return nil
}

// A loan is what a worker has of sockets themselves.
type loan struct {
	key     registry.SocketKey
	sockets []registry.Socket
}

func (p *Pool) giveBack(lent []loan) {
	for _, l := range lent {
		p.cfg.Lender.Return(l.key, l.sockets...)
	}
}

// exhausted marks errors of making descriptors as such, and says which limit it was.
func exhausted(err error) error {
	if why := shortage.Of(err); why != nil {
		return fmt.Errorf("%w: %w", registry.ErrExhausted, why)
	}
	return err
}

// newID makes an id of 100 random bits.
func newID() string {
	return "wrk_" + strings.ToLower(rand.Text()[:20])
}

func endpoints(parts []part) string {
	s := make([]string, len(parts))
	for i, p := range parts {
		s[i] = p.endpoint.String()
	}
	return strings.Join(s, ", ")
}

// meant says whether a reference that names an endpoint names this one; an id or a name means all of a reservation's.
func meant(e registry.Endpoint, ref string) bool {
	named, err := registry.ParseEndpoint(ref)
	if err != nil {
		return true
	}
	named.Netns = e.Netns
	return named.Overlaps(e)
}
