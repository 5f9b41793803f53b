package registry

import "context"

// A SocketKey names the sockets of one assigned endpoint: a reservation's id and the endpoint's index in it.
type SocketKey struct {
	Reservation string
	Index       int
}

// A Bind asks for an endpoint to be taken from the kernel.
type Bind struct {
	Key      SocketKey
	Endpoint Endpoint
	Options  BindOptions
	// Fresh takes nothing that anything stands in the way of, be it only leftovers of closed connections: right for
	// ports of portd's own choice, and cheap to fail.
	Fresh bool
	// As is for whom a unix endpoint's file is made.
	As As
}

// As is with whose rights files are made, and who owns them.
type As struct {
	UID    uint32
	Caller *Caller // who asks; nil where portd takes again what the user had
	Group  *uint32 // that he had then; nil: the one that he logs in with
}

// A Binder takes endpoints from the kernel and has their sockets. Its methods may be called at the same time, though
// not for one key.
type Binder interface {
	// Bind holds every port of the endpoint exclusively, or none of them, and adds the sockets to the key's. The error is a
	// *TakenError whose Want is the port that the kernel gives to another socket (whose that is, Holders says),
	// ErrUnsupported where this kernel lacks the protocol or portd a capability, ErrExhausted where descriptors or memory
	// have run out, ErrInvalid where the host has no such address or device.
	Bind(ctx context.Context, b Bind) error
	// Adopt has, under a key that has nothing, a duplicate of a listening socket that a program has. ErrNotFound where the
	// process does not run or does not have it (*NotListeningError), a *TakenError where the socket is the Binder's already,
	// ErrUnsupported where portd lacks a capability or the socket cannot be had alone, ErrExhausted where descriptors have
	// run out, and whatever May answers. Release gives the socket back.
	Adopt(ctx context.Context, a Adopt) (Adoption, error)
	// Listen makes all sockets of the key listen, or none. ErrTaken where another socket listens on the port; the
	// endpoint then stays held. Listening sockets get the new options.
	Listen(ctx context.Context, key SocketKey, opt ListenOptions) error
	// MayListen is ErrUnsupported where a network namespace is set up so that options would be without effect. It is asked when they
	// are asked for, and not when they are set again.
	MayListen(netns string, opt ListenOptions) error
	// Unlisten stops listening and keeps the ports held.
	Unlisten(key SocketKey) error
	// Release shuts the keys' sockets down and closes them, and returns when nobody keeps them for portd any more, which is one wait for
	// all of them. A key without sockets is no error.
	Release(keys ...SocketKey) error
	// Lent says whether anybody else may have the key's sockets, or have had them, and keep them bound after Release.
	Lent(key SocketKey) bool
	// Options are a listening endpoint's options as the kernel has them.
	Options(key SocketKey) (ListenOptions, error)
	// Holders are the sockets of others that stand in the way of any of the endpoints, with their processes as far as
	// portd sees them.
	Holders(ctx context.Context, eps ...Endpoint) ([]Holder, error)
	// PortsInUse calls found with the local port, within a range, of each socket that a network namespace has of a protocol:
	// portd's own and others', in any state, some ports more than once. It looks for no process, so that tens of thousands
	// are no trouble. seen is false where the kernel has the protocol and does not show its sockets, or not all of them.
	PortsInUse(ctx context.Context, netns string, p Protocol, within PortRange, found func(port uint16)) (seen bool, err error)
	// HasIPv6 says whether the kernel makes IPv6 sockets.
	HasIPv6() bool
	// Ephemeral is the range from which the kernel takes local ports in a network namespace (ip_local_port_range).
	Ephemeral(netns string) PortRange
	// FirstUnprivileged is the first port that takes no capability there (ip_unprivileged_port_start), 1 where none does.
	FirstUnprivileged(netns string) uint16
}

// A Socket is a socket that the Binder has. The descriptor stays the Binder's: who uses it must stop before Closing returns.
type Socket struct {
	Endpoint Endpoint // one port
	FD       int
	Adopted  bool // a program has it too, which goes on accepting from it
	Member   int  // which it is of the sockets in a group, from 0

	Loan uint64 // tells one loan of a lent one from others
}

// A ListenerObserver is told by the Binder of sockets that listen, so that their connections are accepted.
type ListenerObserver interface {
	// Listening says that these sockets listen from now on, or go on listening, with these options.
	Listening(key SocketKey, sockets []Socket, opt ListenOptions)
	// Closing says that the key's sockets stop listening once it has returned; their descriptors may not be used after that.
	Closing(key SocketKey)
}
