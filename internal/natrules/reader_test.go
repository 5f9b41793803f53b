package natrules_test

import (
	"errors"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/natrules"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
)

// rules makes rules without any tool, and takes them all away when the test ends.
func rules(t *testing.T) (c *nftables.Conn, flush func()) {
	t.Helper()
	nstest.Need(t)
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	flush = func() {
		t.Helper()
		err := c.Flush()
		switch {
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.EOPNOTSUPP):
			t.Skipf("needs to make rules of nftables: %v", err)
		case err != nil:
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		c.FlushRuleset()
		_ = c.Flush()
	})
	return c, flush
}

// natChain is a chain that destinations are translated in.
func natChain(c *nftables.Conn, family nftables.TableFamily) (*nftables.Table, *nftables.Chain) {
	table := c.AddTable(&nftables.Table{Name: "nat", Family: family})
	return table, c.AddChain(&nftables.Chain{
		Name: "pre", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
}

func tcp() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
	}
}

func port(p uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(p)},
	}
}

func dnat(to net.IP, p uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.To4()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(p)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
	}
}

func all(parts ...[]expr.Any) (out []expr.Any) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// Rules that come and go are seen at once, though they are not read anew each time.
func TestReaderIsNeverLate(t *testing.T) {
	c, flush := rules(t)
	table, pre := natChain(c, nftables.TableFamilyIPv4)
	flush()
	r := open(t)
	compare(t, nil, seen(t, r, 0, 1, 65535))
	for range 20 {
		c.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: all(tcp(), port(8080), dnat(net.IPv4(172, 17, 0, 2), 80))})
		flush()
		for range 3 {
			compare(t, []string{`tcp/8080-8080 to "172.17.0.2:80" by nftables ip nat pre`}, seen(t, r, registry.TCP, 8080, 8080))
		}
		compare(t, nil, seen(t, r, registry.TCP, 80, 80))
		c.FlushChain(pre)
		flush()
		compare(t, nil, seen(t, r, registry.TCP, 8080, 8080))
	}
}

// What iptables-nft writes: targets and matches as the kernel's old structs, in expressions of nftables.
func TestCompatExpressions(t *testing.T) {
	c, flush := rules(t)
	table, pre := natChain(c, nftables.TableFamilyIPv4)
	jumped := c.AddChain(&nftables.Chain{Name: "DOCKER", Table: table})
	c.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: []expr.Any{
		&expr.Match{Name: "addrtype", Rev: 1, Info: &xt.AddrTypeV1{Dest: 1 << 2}},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictJump, Chain: "DOCKER"},
	}})
	target := func(name string, r xt.NatRange) *expr.Target {
		return &expr.Target{Name: name, Rev: 2, Info: &xt.NatRange2{NatRange: r}}
	}
	c.AddRule(&nftables.Rule{Table: table, Chain: jumped, Exprs: append(tcp(),
		&expr.Match{Name: "tcp", Info: &xt.Tcp{SrcPorts: [2]uint16{0, 65535}, DstPorts: [2]uint16{8000, 8009}}},
		target("DNAT", xt.NatRange{
			Flags: uint(xt.NatRangeMapIPs | xt.NatRangeProtoSpecified), MinIP: net.IPv4(10, 0, 0, 1), MaxIP: net.IPv4(10, 0, 0, 1), MinPort: 80, MaxPort: 89,
		}))})
	c.AddRule(&nftables.Rule{Table: table, Chain: jumped, Exprs: append(tcp(),
		&expr.Match{Name: "tcp", Info: &xt.Tcp{SrcPorts: [2]uint16{0, 65535}, DstPorts: [2]uint16{9000, 9000}}},
		target("DNAT", xt.NatRange{Flags: uint(xt.NatRangeMapIPs), MinIP: net.IPv4(10, 0, 0, 1), MaxIP: net.IPv4(10, 0, 0, 9)}))})
	flush()
	compare(t, []string{
		`tcp/8000-8009 to "10.0.0.1:80-89" by nftables ip nat DOCKER`,
		`tcp/9000-9000 to "10.0.0.1-10.0.0.9" by nftables ip nat DOCKER`,
	}, seen(t, open(t), 0, 1, 65535))
}

// Sets and maps, made by somebody else's encoder than nft's.
func TestMaps(t *testing.T) {
	c, flush := rules(t)
	table, pre := natChain(c, nftables.TableFamilyIPv4)
	there := c.AddChain(&nftables.Chain{Name: "there", Table: table})
	c.AddRule(&nftables.Rule{Table: table, Chain: there, Exprs: all(tcp(), dnat(net.IPv4(10, 0, 0, 1), 1))})
	verdicts := &nftables.Set{Table: table, Name: "ports", IsMap: true, KeyType: nftables.TypeInetService, DataType: nftables.TypeVerdict}
	if err := c.AddSet(verdicts, []nftables.SetElement{
		{Key: binaryutil.BigEndian.PutUint16(81), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: "there"}},
		{Key: binaryutil.BigEndian.PutUint16(80), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: "there"}},
		{Key: binaryutil.BigEndian.PutUint16(82), VerdictData: &expr.Verdict{Kind: expr.VerdictAccept}},
	}); err != nil {
		t.Fatal(err)
	}
	c.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: append(tcp(),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: 1, DestRegister: 0, IsDestRegSet: true, SetName: verdicts.Name})})
	flush()
	r := open(t)
	compare(t, []string{
		`tcp/80-80 to "10.0.0.1:1" by nftables ip nat there`, `tcp/81-81 to "10.0.0.1:1" by nftables ip nat there`,
	}, seen(t, r, 0, 1, 65535))
	// A map that changes is a change of the rules.
	if err := c.SetAddElements(verdicts, []nftables.SetElement{
		{Key: binaryutil.BigEndian.PutUint16(90), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: "there"}},
	}); err != nil {
		t.Fatal(err)
	}
	flush()
	compare(t, []string{`tcp/90-90 to "10.0.0.1:1" by nftables ip nat there`}, seen(t, r, 0, 90, 90))
}

// Somebody changes the rules while they are read: every answer is of one moment.
func TestReaderAmongChanges(t *testing.T) {
	c, flush := rules(t)
	table, pre := natChain(c, nftables.TableFamilyIPv4)
	flush()
	r := open(t)
	for n := range uint16(100) {
		changed := make(chan error, 1)
		go func() {
			var err error
			for i := range uint16(3) {
				c.FlushChain(pre) // the two rules of one change come together, and go together
				for _, p := range []uint16{1000, 2000} {
					c.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: all(tcp(), port(p+3*n+i), dnat(net.IPv4(10, 0, 0, 1), 80))})
				}
				err = errors.Join(err, c.Flush())
			}
			changed <- err
		}()
		got := seen(t, r, 0, 1, 65535)
		if err := <-changed; err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 && n == 0 {
			continue // it was before the first change
		}
		const at = len("tcp/1") // the rest of a port
		if len(got) != 2 || got[0][at:at+3] != got[1][at:at+3] {
			t.Fatalf("of two moments: %q", got)
		}
	}
}

// Who may not see rules is told so, where there may be any.
func TestWithoutTheRight(t *testing.T) {
	c, flush := rules(t)
	without := func() (lines []string) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // ends with the goroutine, for it can do no more
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData
			if err := unix.Capset(&header, &none[0]); err != nil {
				t.Error(err)
				return
			}
			r, err := natrules.Open()
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			lines = seen(t, r, 0, 1, 65535)
		}()
		<-done
		return lines
	}
	if text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count"); err == nil && string(text) == "0\n" {
		compare(t, nil, without())
	}
	table, pre := natChain(c, nftables.TableFamilyIPv4)
	c.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: all(tcp(), port(1), dnat(net.IPv4(10, 0, 0, 1), 80))})
	flush()
	connect(t) // from now on the kernel keeps connections in mind, as rules of NAT want it
	compare(t, []string{
		"NAT rules, which may redirect ports before a socket sees anything, are not seen: portd lacks CAP_NET_ADMIN",
	}, without())
}

// connect makes a connection that stays until the test ends.
func connect(t *testing.T) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	conn, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
}

func BenchmarkRedirects(b *testing.B) {
	nstest.Need(b)
	r, err := natrules.Open()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(r.Close)
	ask := func(b *testing.B, want int) {
		for b.Loop() {
			all, _, err := r.Redirects(b.Context(), registry.TCP, registry.PortRange{First: 8080, Last: 8080})
			if err != nil || len(all) != want {
				b.Fatal(all, err)
			}
		}
	}
	b.Run("no rules", func(b *testing.B) { ask(b, 0) })
	c, err := nftables.New()
	if err != nil {
		b.Fatal(err)
	}
	table, pre := natChain(c, nftables.TableFamilyIPv4)
	for i := range uint16(5000) {
		c.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: all(tcp(), port(8080+i), dnat(net.IPv4(10, 0, 0, 1), 80))})
		if i%100 != 99 {
			continue // a message has its bounds
		}
		if err := c.Flush(); err != nil {
			b.Skipf("needs to make rules of nftables: %v", err)
		}
	}
	b.Cleanup(func() {
		c.FlushRuleset()
		_ = c.Flush()
	})
	b.Run("5000 rules", func(b *testing.B) { ask(b, 1) })
	b.Run("5000 rules, changed", func(b *testing.B) {
		for b.Loop() {
			c.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: all(tcp(), port(1), dnat(net.IPv4(10, 0, 0, 1), 80))})
			if err := c.Flush(); err != nil {
				b.Fatal(err)
			}
			if _, _, err := r.Redirects(b.Context(), registry.TCP, registry.PortRange{First: 8080, Last: 8080}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
