// Package natrules tells which ports the NAT rules of a network namespace redirect before a socket sees what arrives: those of
// nftables, of iptables on top of it, and of the iptables that the kernel had before.
//
// It follows packets that are for this host from where they arrive, or where a program connects, through all chains to where their
// destination is translated. What a rule asks of a packet beside protocol, port and address (the device that it comes from, a
// mark, chance) is taken for true: a redirect is told if it may happen.
package natrules

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// A Reader reads the rules of one network namespace. It must be closed. Its methods may be called at the same time.
type Reader struct {
	mu   sync.Mutex    // guards all below
	conn *netlink.Conn // nil where the kernel has no nfnetlink, and so no nftables; gens likewise
	gens *generations
	old  []*oldTable
	// loaded is true once the kernel has nftables.
	loaded bool
	gen    uint32 // of nftables' rules when found was made; 0: not yet
	// found is what they do, in order of the ports.
	found []target
	cut   bool
}

// Open makes a Reader for the network namespace of the calling thread.
func Open() (*Reader, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return &Reader{old: oldTables()}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read NAT rules: %w", err)
	}
	gens, err := openGenerations()
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("read NAT rules: %w", err)
	}
	return &Reader{conn: conn, gens: gens, old: oldTables()}, nil
}

// Close closes the Reader.
func (r *Reader) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil {
		_ = r.conn.Close()
		r.gens.close()
	}
	for _, o := range r.old {
		o.close()
	}
}

// Redirects are the rules that redirect any of the ports, of a protocol or (0) of any, where they are for an address of this
// host. hidden says what kept it from looking, in a sentence, if there may be rules. Rules of nftables are read again when they
// have changed, so that to ask where nothing has costs one small question to the kernel; those of the old iptables are read
// every time.
func (r *Reader) Redirects(ctx context.Context, proto registry.Protocol, ports registry.PortRange) (out []registry.Redirect, hidden string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all, cut, err := r.all(ctx)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		if mayHaveRules() {
			hidden = "NAT rules, which may redirect ports before a socket sees anything, are not seen: portd lacks CAP_NET_ADMIN"
		}
	case errors.Is(err, errChanged):
		return nil, "NAT rules, which may redirect ports, were not read: " + err.Error(), nil
	case err != nil:
		return nil, "", err
	}
	var own []addresses // of this host, where it matters
	for i := range all {
		a := &all[i]
		if ports.Last < a.Ports.First {
			break
		}
		if proto != 0 && a.Proto != 0 && a.Proto != proto || a.Ports.Last < ports.First {
			continue
		}
		if !a.to.all() && own == nil {
			if own, err = ownAddresses(); err != nil {
				return nil, "", err
			}
		}
		// What is for others, as for a cluster's services, is no port of this host's.
		if a.to.all() || slices.ContainsFunc(own, func(o addresses) bool { _, some := a.to.and(o); return some }) {
			out = append(out, a.Redirect)
		}
	}
	if cut {
		hidden = "there are more NAT rules than portd follows: some redirects may be missing"
	}
	return out, hidden, nil
}

// all is what all rules do. Where those of nftables are seen the kernel's own iptables are not missed: in a user namespace nobody
// may read which tables it has, and they are rarely used there.
func (r *Reader) all(ctx context.Context) (all []target, cut bool, err error) {
	if !r.loaded && r.conn != nil { // to ask a kernel in which it is a module would load that
		r.loaded = hasModule("nf_tables")
	}
	if r.loaded && (!r.gens.quiet() || r.gen == 0) {
		gen, has, err := r.gens.ask()
		if err != nil {
			r.gen = 0 // the change that was told of is not told of again
			return nil, false, err
		}
		if has && gen != r.gen {
			r.gen = 0
			ctx, stop := context.WithTimeout(ctx, patience)
			defer stop()
			found, cut, of, err := r.nftables(ctx, gen)
			if err != nil {
				return nil, false, err
			}
			r.found, r.cut, r.gen = merged(found), cut, of
		}
	}
	all, cut = r.found, r.cut
	for _, o := range r.old {
		found, oldCut, err := o.redirects()
		if errors.Is(err, os.ErrPermission) && r.gen != 0 {
			continue
		}
		if err != nil {
			return nil, false, err
		}
		if len(found) > 0 {
			all = append(slices.Clip(all), merged(found)...)
			slices.SortStableFunc(all, inOrder)
		}
		cut = cut || oldCut
	}
	return all, cut, nil
}

func inOrder(a, b target) int {
	return cmp.Or(cmp.Compare(a.Ports.First, b.Ports.First), cmp.Compare(a.Proto, b.Proto), strings.Compare(a.Rule, b.Rule))
}

// ownAddresses are what the host has, and all of loopback.
func ownAddresses() (own []addresses, err error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of this host: %w", err)
	}
	own = append(own, addresses{netip.AddrFrom4([4]byte{127, 0, 0, 0}), netip.AddrFrom4([4]byte{127, 255, 255, 255})})
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, addresses{p.Addr(), p.Addr()})
		}
	}
	return own, nil
}

// hasModule says whether a part of the kernel is loaded, or built in, or may be.
func hasModule(name string) bool {
	if _, err := os.Stat("/sys/module/" + name); err == nil {
		return true
	}
	return builtIn(name)
}

// builtIn goes by the kernel's list of what is built in. Where there is none, as in containers, it may be.
var builtIn = func() func(string) bool {
	list := sync.OnceValues(func() (string, error) {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return "", err
		}
		text, err := os.ReadFile("/lib/modules/" + unix.ByteSliceToString(u.Release[:]) + "/modules.builtin")
		return string(text), err
	})
	return func(name string) bool {
		text, err := list()
		return err != nil || strings.Contains(text, "/"+name+".ko")
	}
}()

// mayHaveRules goes by what everybody may see: whether there is NAT at all, and whether the kernel has a connection in mind, as
// it has for every one where there are rules of NAT.
func mayHaveRules() bool {
	if !hasModule("nf_nat") {
		return false
	}
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return err == nil && n > 0
}
