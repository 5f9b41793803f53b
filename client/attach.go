package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/peercred"
	"github.com/portd/portd/internal/wire"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A Wish is one listener that a worker wants to serve.
type Wish struct {
	// Reference is a reservation's id or name, or an endpoint ("tcp/8080").
	Reference string
	// Socket asks for the listening or UDP socket itself in place of its connections.
	Socket bool
	// NotReady attaches without taking connections yet: see Attachment.Ready.
	NotReady bool
	// Weight is the worker's share beside others of its priority; 0: one share.
	Weight uint16
	// Priority 0 is the first: workers of a higher number get what those before them have no room for.
	Priority uint8
}

// AttachConfig says where to attach, and to what.
type AttachConfig struct {
	Socket string // path of portd's hand-off socket
	Wishes []Wish
	Room   int    // messages that may wait in the queue, of a few connections each; 0 leaves it to portd, which is best
	Token  []byte // of an attachment to resume, or nil
	// Generation is what this worker calls the release or start that it belongs to, up to 63 bytes: so an operator drains the old ones. Where
	// it is empty the environment's PORTD_GENERATION counts.
	Generation string
	// TCPConn makes a Listener's Accept return a *net.TCPConn for each TCP connection, for programs that insist on the type. It costs
	// about as much again as taking the connection, and portd counts it as done at once: see the function TCPConn.
	TCPConn bool

	draining func(wish int) bool // takes no more connections; may be nil
}

// An AttachedListener is one endpoint that was granted.
type AttachedListener struct {
	Number      uint32 // what portd calls it within this attachment
	Wish        int    // which wish it answers
	Reservation string
	Endpoint    string
	Index       int        // of the endpoint in its reservation
	Sockets     []*os.File // for a wish with Socket; whoever takes them closes them
}

// An Attachment is a worker's standing at the hand-off. It ends with Close, or when this process ends.
type Attachment struct {
	ID        string
	Token     []byte
	Kept      bool // the old queue goes on
	Room      int
	Listeners []AttachedListener

	conn  *net.UnixConn
	queue *queue
}

const attachTimeout = 10 * time.Second

// Attach asks portd for listeners. The error is an *Error where portd said no. The Attachment must be closed.
func Attach(ctx context.Context, cfg AttachConfig) (_ *Attachment, err error) {
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", cfg.Socket)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	conn := c.(*net.UnixConn)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			_ = conn.Close()
		}
	}()
	if err := checkServer(conn); err != nil {
		return nil, err
	}
	if _, err := conn.Write(cfg.message()); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	a, err := receiveAttached(conn)
	if err != nil {
		var refused *Error
		if errors.As(err, &refused) {
			return nil, err
		}
		return nil, fmt.Errorf("attach: %w", err)
	}
	return a, nil
}

func (cfg AttachConfig) message() []byte {
	m := wire.Attach{
		MinVersion: wire.Version, MaxVersion: wire.Version, Room: uint16(cfg.Room), Token: cfg.Token,
		Generation: cmp.Or(cfg.Generation, os.Getenv("PORTD_GENERATION")),
	}
	for i, w := range cfg.Wishes {
		draining := cfg.draining != nil && cfg.draining(i)
		want := wire.WantConnections
		if w.Socket {
			want = wire.WantSocket
		}
		m.Wishes = append(m.Wishes, wire.Wish{
			Reference: w.Reference, Want: want, Ready: !w.NotReady && !draining, Draining: draining, Weight: w.Weight, Priority: w.Priority,
		})
	}
	return wire.AppendAttach(nil, m)
}

// checkServer makes sure that it is portd, or at least nobody worse than ourselves, that we take descriptors from.
func checkServer(conn *net.UnixConn) error {
	cred, err := peercred.Of(conn)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if !trusted(cred.UID) {
		return fmt.Errorf("attach: %w: the hand-off socket is served by uid %d, neither root nor you", ErrUntrusted, cred.UID)
	}
	return nil
}

// receiveAttached reads portd's answer and what comes with it.
func receiveAttached(conn *net.UnixConn) (a *Attachment, err error) {
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	buf := make([]byte, wire.MaxMessage)
	m, err := receiveControl(conn, buf, &fds, wire.TypeAttached, wire.TypeRefused)
	if err != nil {
		return nil, err
	}
	if m.Type == wire.TypeRefused {
		r, err := wire.DecodeRefused(m)
		if err != nil {
			return nil, err
		}
		return nil, refused(r)
	}
	got, err := wire.DecodeAttached(m)
	if err != nil {
		return nil, err
	}
	sockets := 0
	for _, l := range got.Listeners {
		sockets += int(l.Sockets)
	}
	for more := got.More; more; {
		m, err := receiveControl(conn, make([]byte, wire.MaxMessage), &fds, wire.TypeSockets)
		if err != nil {
			return nil, err
		}
		if more, err = wire.DecodeSockets(m); err != nil {
			return nil, err
		}
	}
	if got.Kept || len(fds) != 2+sockets {
		return nil, fmt.Errorf("%d descriptors came with the answer, not %d; near the limit of open files?", len(fds), 2+sockets)
	}

	a = &Attachment{ID: got.ID, Token: append([]byte(nil), got.Token...), Kept: got.Kept, Room: int(got.Room), conn: conn}
	a.queue, err = newQueue(fds[0], fds[1])
	if err != nil {
		return nil, err
	}
	fds = fds[1:] // the queue has its descriptor; of the page only the mapping is needed
	rest := fds[1:]
	for _, l := range got.Listeners {
		al := AttachedListener{Number: l.Number, Wish: int(l.Wish), Reservation: l.Reservation, Endpoint: l.Endpoint, Index: int(l.Index)}
		for range l.Sockets {
			al.Sockets = append(al.Sockets, os.NewFile(uintptr(rest[0]), l.Endpoint))
			rest = rest[1:]
		}
		a.Listeners = append(a.Listeners, al)
	}
	fds = fds[:1]
	return a, nil
}

// refused is portd's no as an error; its codes are gRPC's.
func refused(r wire.Refused) error {
	e := &Error{text: r.Text, status: status.New(codes.Code(r.Code), r.Text)}
	if is := meaning[codes.Code(r.Code)]; is != nil {
		e.is = append(e.is, is)
	}
	return e
}

// receiveControl reads a message of one of these types and collects its descriptors, for the caller to close. Others, which a later portd
// may send, are skipped.
func receiveControl(conn *net.UnixConn, buf []byte, fds *[]int, types ...wire.Type) (wire.Message, error) {
	for {
		n, came, err := fdpass.RecvConn(conn, buf)
		if err != nil {
			closeEach(came)
			return wire.Message{}, err
		}
		m, err := wire.Parse(buf[:n])
		if err == nil && slices.Contains(types, m.Type) {
			*fds = append(*fds, came...)
			return m, nil
		}
		closeEach(came)
		if err != nil {
			return wire.Message{}, err
		}
	}
}

// Ready tells portd to send connections, of one listener by its number or of all.
func (a *Attachment) Ready(listener uint32) error { return a.say(wire.AppendReady(nil, listener)) }

// Drain tells portd to send no more connections. portd says when nothing lies in the queue any more.
func (a *Attachment) Drain(listener uint32) error { return a.say(wire.AppendDrain(nil, listener)) }

// AllListeners in Ready and Drain means every listener of the attachment.
const AllListeners = wire.AllListeners

func (a *Attachment) say(message []byte) error {
	if _, err := a.conn.Write(message); err != nil {
		return fmt.Errorf("tell portd: %w", err)
	}
	return nil
}

// Wait returns when the attachment has ended: nil where portd ended it or is gone, net.ErrClosed after Close.
func (a *Attachment) Wait() error {
	for {
		if _, err := a.next(); errors.Is(err, net.ErrClosed) {
			return net.ErrClosed
		} else if err != nil {
			return nil
		}
	}
}

// A drainNumber is portd's DRAIN: of a listener, or of AllListeners.
type drainNumber uint32

// giveBack tells portd that what lies in the queue finds no descriptors here.
func (a *Attachment) giveBack() { _ = a.say(wire.AppendGiveBack(nil)) }

// next waits for what portd says.
func (a *Attachment) next() (any, error) {
	buf := make([]byte, wire.MaxMessage)
	for {
		n, err := a.conn.Read(buf)
		if err != nil {
			return nil, err
		}
		m, err := wire.Parse(buf[:n])
		if err != nil {
			return nil, err
		}
		switch m.Type {
		case wire.TypeDrain:
			number, err := wire.DecodeNumber(m)
			return drainNumber(number), err
		case wire.TypeDrained:
			return wire.DecodeDrained(m)
		case wire.TypeListenerGone:
			return wire.DecodeListenerGone(m)
		}
	}
}

// Close ends the attachment: what lies in its queue goes to other workers. Sockets that were taken stay open.
func (a *Attachment) Close() error {
	err := a.conn.Close()
	a.queue.Close()
	return err
}
