package sockdiag

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The multicast groups that tell of sockets that are gone: SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET_UDP_DESTROY, and the two of IPv6
// (linux/sock_diag.h).
const (
	firstClosedGroup = 1
	lastClosedGroup  = 4
)

// attrProtocol is INET_DIAG_PROTOCOL.
const attrProtocol = 10

// maxFiltered is for how many ports the kernel is given a program that looks at each; a program has at most 4,096 instructions.
const maxFiltered = 1000

// WatchClosed calls closed when a socket is gone that was bound to one of some ports, or listened there, in the network namespace of the
// calling thread: when the last process has closed it and its port is free of it. It needs no privilege. It tells of TCP, MPTCP and UDP, not
// of UDP-Lite, of connections, or of what is left over from those.
//
// The kernel forgets what is not read in time: look is called once it watches, so that what was closed before is not overlooked,
// and again whenever it may have missed some. WatchClosed returns when ctx ends, with its error, or cannot watch.
//
// What is not of these ports, the kernel throws away before it wakes anybody: on a host that closes thousands of connections in a second
// that is nearly all of it.
func WatchClosed(ctx context.Context, ports []uint16, look func(), closed func(p Protocol, port uint16)) error {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return fmt.Errorf("watch for closed sockets: %w", err)
	}
	defer conn.Close()
	if len(ports) > maxFiltered {
		ports = nil
	}
	program, err := bpf.Assemble(closedOn(ports))
	if err == nil {
		err = conn.SetBPF(program)
	}
	for group := uint32(firstClosedGroup); group <= lastClosedGroup && err == nil; group++ {
		if err = conn.JoinGroup(group); group > firstClosedGroup+1 && errors.Is(err, unix.ENOENT) {
			err = nil // a kernel without IPv6 has no such sockets
		}
	}
	if err != nil {
		return fmt.Errorf("watch for closed sockets: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	look()
	for {
		messages, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			look()
			continue
		case err != nil:
			return fmt.Errorf("watch for closed sockets: %w", err)
		}
		for _, m := range messages {
			if p, port, ok := parseClosed(m.Data); ok {
				closed(p, port)
			}
		}
	}
}

// ClosedShown reports whether this kernel tells this process of closed sockets, as WatchClosed needs it.
func ClosedShown() bool {
	ctx, stop := context.WithCancel(context.Background())
	shown := false
	_ = WatchClosed(ctx, nil, func() { shown = true; stop() }, func(Protocol, uint16) {})
	stop()
	return shown
}

// closedOn is a program for a socket filter (bpf(4)) that lets through what tells of sockets on some ports, or of any where there are
// none, but for connections. A message is a netlink header of 16 bytes with an inet_diag_msg behind it.
func closedOn(ports []uint16) []bpf.Instruction {
	const (
		localPort  = 16 + 4
		remotePort = 16 + 6
	)
	all := bpf.RetConstant{Val: 1<<32 - 1}
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: remotePort, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		bpf.RetConstant{},
		bpf.LoadAbsolute{Off: localPort, Size: 2},
	}
	for _, port := range ports {
		program = append(program, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(port), SkipFalse: 1}, all)
	}
	if len(ports) > 0 {
		return append(program, bpf.RetConstant{})
	}
	return append(program, all)
}

// parseClosed is the protocol and the port of what an inet_diag_msg tells of; it is not ok of one that tells less.
func parseClosed(b []byte) (p Protocol, port uint16, ok bool) {
	if len(b) < messageSize {
		return 0, 0, false
	}
	port = binary.BigEndian.Uint16(b[4:])
	err := attributes(b[messageSize:], func(kind uint16, data []byte) error {
		if kind == attrProtocol && len(data) > 0 {
			p = Protocol(data[0])
		}
		return nil
	})
	return p, port, err == nil && p != 0 && port != 0
}
