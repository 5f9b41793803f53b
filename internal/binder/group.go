package binder

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// Groups of UDP sockets: one port, held by several sockets with SO_REUSEPORT, so that several programs can have one each. The kernel
// gives each datagram to the socket whose place in the group a program attached to it says. Places are in the order of binding, and when
// a socket closes the last one moves into its place; so none is closed before all are.

// bindGroup binds the rest of a group to the port of its first socket, which was bound without SO_REUSEPORT: so nobody else was there. From
// here on a program of portd's own user can join.
func (r *recipe) bindGroup(first *socket) (rest []*socket, err error) {
	defer func() {
		if err != nil {
			for _, s := range rest {
				s.close()
			}
			rest = nil
		}
	}()
	first.salt = rand.Uint32() | 1
	if err := first.join(); err != nil {
		return nil, err
	}
	for member := 1; member < r.opt.Group; member++ {
		s, err := r.open(first.ep.First)
		if err != nil {
			return rest, err
		}
		s.member, s.salt = member, first.salt
		rest = append(rest, s)
		if err := s.join(); err != nil {
			return rest, err
		}
		if err := r.bind(s); err != nil {
			return rest, r.bindError(s.ep.First, err)
		}
	}
	return rest, nil
}

// join lets a socket be one of a group.
func (s *socket) join() error {
	s.grouped = true
	if err := s.set(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return fmt.Errorf("set SO_REUSEPORT: %w", err)
	}
	return nil
}

// steer divides what arrives among the members of a group that programs have who want it. Where there are none it stays as it was: the next
// program gets what the last ones left.
func (h *holding) steer() error {
	if h.group == 0 || h.still {
		return nil
	}
	var lent []uint32
	for member := range h.group {
		if h.loanOf(member).wants() {
			lent = append(lent, uint32(member))
		}
	}
	if len(lent) == 0 {
		return nil
	}
	raw, err := bpf.Assemble(steering(lent, h.sockets[0].salt))
	if err != nil {
		return fmt.Errorf("steer datagrams: %w", err)
	}
	prog := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		prog[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	err = unix.SetsockoptSockFprog(h.sockets[0].fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
		&unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.EOPNOTSUPP):
		return &registry.UnsupportedError{
			What: fmt.Sprintf("a group of sockets on %v", h.sockets[0].ep),
			Why:  fmt.Sprintf("this kernel does not let portd say which of them gets a datagram (SO_ATTACH_REUSEPORT_CBPF, socket(7): %v)", err),
		}
	case err != nil:
		return fmt.Errorf("steer the datagrams of %v: %w", h.sockets[0].ep, err)
	}
	return nil
}

// steering is a classic BPF program that gives a datagram to one of the members by its source address and port. The same source has the
// same member as long as that one is there, and when one comes or goes the others keep theirs, but for the share of the one that
// comes: each source has a weight at each member, and goes to the heaviest (rendezvous hashing). An IPv6 datagram with extension headers
// goes by its address alone.
func steering(members []uint32, salt uint32) []bpf.Instruction {
	const (
		network   = 0xfff00000 // SKF_NET_OFF of linux/filter.h, where the IP header begins; at 0 the program sees what is in the datagram
		udp       = 17
		hash      = 0 // the scratch words
		heaviest  = 1
		member    = 2
		golden    = 0x9e3779b1
		avalanche = 0x85ebca6b
	)
	// A is mixed into the hash.
	mix := []bpf.Instruction{
		bpf.LoadScratch{Dst: bpf.RegX, N: hash},
		bpf.ALUOpX{Op: bpf.ALUOpXor},
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: avalanche},
		bpf.TAX{},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 15},
		bpf.ALUOpX{Op: bpf.ALUOpXor},
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: golden},
		bpf.TAX{},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 13},
		bpf.ALUOpX{Op: bpf.ALUOpXor},
		bpf.StoreScratch{Src: bpf.RegA, N: hash},
	}
	take := func(load bpf.Instruction) []bpf.Instruction { return append([]bpf.Instruction{load}, mix...) }
	word := func(at uint32) []bpf.Instruction { return take(bpf.LoadAbsolute{Off: network + at, Size: 4}) }

	four := word(12) // the source address
	four = append(four,
		bpf.LoadAbsolute{Off: network, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 2},
		bpf.TAX{})
	four = append(four, take(bpf.LoadIndirect{Off: network, Size: 2})...) // behind the header, the source port
	var six []bpf.Instruction
	for at := uint32(8); at < 24; at += 4 {
		six = append(six, word(at)...)
	}
	port := take(bpf.LoadAbsolute{Off: network + 40, Size: 2})
	six = append(six,
		bpf.LoadAbsolute{Off: network + 6, Size: 1}, // the next header
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: udp, SkipTrue: uint8(len(port))})
	six = append(six, port...)

	prog := []bpf.Instruction{
		bpf.LoadConstant{Dst: bpf.RegA, Val: salt},
		bpf.StoreScratch{Src: bpf.RegA, N: hash},
		bpf.LoadAbsolute{Off: network, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 4, SkipTrue: uint8(len(four) + 1)},
	}
	prog = append(prog, four...)
	prog = append(prog, bpf.Jump{Skip: uint32(len(six))})
	prog = append(prog, six...)

	for i, m := range members {
		prog = append(prog,
			bpf.LoadScratch{Dst: bpf.RegA, N: hash},
			bpf.ALUOpConstant{Op: bpf.ALUOpXor, Val: (m + 1) * golden},
			bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: avalanche},
			bpf.TAX{},
			bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 15},
			bpf.ALUOpX{Op: bpf.ALUOpXor},
			bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: golden},
			bpf.TAX{},
			bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16},
			bpf.ALUOpX{Op: bpf.ALUOpXor})
		if i > 0 {
			prog = append(prog,
				bpf.LoadScratch{Dst: bpf.RegX, N: heaviest},
				bpf.JumpIfX{Cond: bpf.JumpLessOrEqual, SkipTrue: 3})
		}
		prog = append(prog,
			bpf.StoreScratch{Src: bpf.RegA, N: heaviest},
			bpf.LoadConstant{Dst: bpf.RegA, Val: m},
			bpf.StoreScratch{Src: bpf.RegA, N: member})
	}
	return append(prog, bpf.LoadScratch{Dst: bpf.RegA, N: member}, bpf.RetA{})
}
