package natrules_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/natrules"
	"github.com/portd/portd/internal/nstest"
	"github.com/portd/portd/internal/registry"
)

// tool runs a program of an administrator's, with its input.
func tool(t *testing.T, input, name string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s", name)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		if strings.Contains(string(out), "ermission denied") || strings.Contains(string(out), "not permitted") {
			t.Skipf("needs to change rules here: %s", out)
		}
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func open(t *testing.T) *natrules.Reader {
	t.Helper()
	nstest.Need(t)
	r, err := natrules.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// seen is what a Reader tells, a line for each.
func seen(t *testing.T, r *natrules.Reader, proto registry.Protocol, first, last uint16) (lines []string) {
	t.Helper()
	all, hidden, err := r.Redirects(t.Context(), proto, registry.PortRange{First: first, Last: last})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		p := "any"
		if d.Proto != 0 {
			p = d.Proto.String()
		}
		at := ""
		if d.Address != "" {
			at = " for " + d.Address
		}
		lines = append(lines, fmt.Sprintf("%s/%d-%d%s to %q by %s", p, d.Ports.First, d.Ports.Last, at, d.To, d.Rule))
	}
	if hidden != "" {
		lines = append(lines, hidden)
	}
	return lines
}

func compare(t *testing.T, want, got []string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// docker is what Docker writes for published ports, as iptables-save has it.
const docker = `*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-A DOCKER -d 127.0.0.1/32 ! -i docker0 -p tcp -m tcp --dport 8081 -j DNAT --to-destination 172.17.0.3:80
-A DOCKER ! -i docker0 -p udp -m udp --dport 5000:5009 -j DNAT --to-destination 172.17.0.2:5000-5009
COMMIT
`

// kube is what kube-proxy writes: a cluster's service on an address of its own, and one on a port of every node.
const kube = `*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-EXT-A - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SEP-1 - [0:0]
:KUBE-SEP-2 - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "default/a cluster IP" -m tcp --dport 443 -j KUBE-SVC-A
-A KUBE-SERVICES -m comment --comment "last" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/a" -m tcp --dport 30080 -j KUBE-EXT-A
-A KUBE-EXT-A -m comment --comment "masquerade" -j KUBE-MARK-MASQ
-A KUBE-EXT-A -j KUBE-SVC-A
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-1
-A KUBE-SVC-A -j KUBE-SEP-2
-A KUBE-SEP-1 -s 10.244.0.5/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-1 -p tcp -m tcp -j DNAT --to-destination 10.244.0.5:8443
-A KUBE-SEP-2 -p tcp -m tcp -j DNAT --to-destination 10.244.0.6:8443
COMMIT
`

// odd is what an administrator may write.
const odd = `*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:IN - [0:0]
-A PREROUTING -p tcp -g IN
-A PREROUTING -p udp -m multiport --dports 53,5353,6000:6010 -j REDIRECT --to-ports 1053
-A PREROUTING -p udp -m udp ! --dport 1:65000 -j REDIRECT --to-ports 1054
-A PREROUTING -p udp -m udp --dport 123 -j REDIRECT
-A IN -p tcp -m tcp --dport 22 -j RETURN
-A IN -p tcp -m tcp --dport 23 -j ACCEPT
-A IN -p tcp -j REDIRECT --to-ports 15006
COMMIT
`

func TestIptables(t *testing.T) {
	for _, way := range []struct{ kind, tool4, tool6, rule string }{
		{"of its own", "iptables-legacy-restore", "ip6tables-legacy-restore", "iptables"},
		{"in nftables", "iptables-nft-restore", "ip6tables-nft-restore", "nftables"},
	} {
		t.Run(way.kind, func(t *testing.T) {
			r := open(t)
			t.Cleanup(func() {
				const empty = "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
				tool(t, empty, way.tool4)
				tool(t, empty, way.tool6)
			})
			by := " by " + way.rule + " ip nat "
			tool(t, docker, way.tool4)
			compare(t, []string{
				`tcp/8080-8080 to "172.17.0.2:80"` + by + "DOCKER",
				`tcp/8081-8081 for 127.0.0.1 to "172.17.0.3:80"` + by + "DOCKER",
			}, seen(t, r, 0, 8000, 9000))
			compare(t, []string{`udp/5000-5009 to "172.17.0.2:5000-5009"` + by + "DOCKER"}, seen(t, r, registry.UDP, 5009, 5009))
			compare(t, nil, seen(t, r, registry.TCP, 5009, 5009))
			compare(t, nil, seen(t, r, registry.TCP, 80, 80))

			tool(t, kube, way.tool4)
			compare(t, []string{
				`tcp/30080-30080 to "10.244.0.5:8443"` + by + "KUBE-SEP-1",
				`tcp/30080-30080 to "10.244.0.6:8443"` + by + "KUBE-SEP-2",
			}, seen(t, r, 0, 1, 65535))

			tool(t, odd, way.tool4)
			compare(t, []string{
				`tcp/1-21 to ":15006"` + by + "IN",
				`tcp/24-65535 to ":15006"` + by + "IN",
				`udp/53-53 to ":1053"` + by + "PREROUTING",
				`udp/5353-5353 to ":1053"` + by + "PREROUTING",
				`udp/6000-6010 to ":1053"` + by + "PREROUTING",
				`udp/65001-65535 to ":1054"` + by + "PREROUTING",
			}, seen(t, r, 0, 1, 65535))

			tool(t, "*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n", way.tool4)
			compare(t, nil, seen(t, r, 0, 1, 65535))
			tool(t, `*nat
-A PREROUTING -d ::1/128 -p tcp -m tcp --dport 80 -j DNAT --to-destination [fd00::2]:8080
-A PREROUTING -d fd00:1::/64 -p tcp -m tcp --dport 81 -j DNAT --to-destination [fd00::2]:8080
-A PREROUTING -p udp -m udp --dport 82 -j REDIRECT --to-ports 8082
COMMIT
`, way.tool6)
			by = " by " + way.rule + " ip6 nat PREROUTING"
			compare(t, []string{`tcp/80-80 for ::1 to "[fd00::2]:8080"` + by, `udp/82-82 to ":8082"` + by}, seen(t, r, 0, 1, 65535))
		})
	}
}

// Rules as people write them for nft(8).
func TestNft(t *testing.T) {
	r := open(t)
	t.Cleanup(func() { tool(t, "flush ruleset", "nft", "-f", "-") })
	const chain = "type nat hook prerouting priority dstnat; "
	for _, test := range []struct {
		name, table, rules string
		want               []string
	}{
		{"dnat", "ip nat", "chain pre { " + chain + "tcp dport 8080 dnat to 172.17.0.2:80; }", []string{`tcp/8080-8080 to "172.17.0.2:80" by nftables ip nat pre`}},
		{"the same port elsewhere", "ip nat", "chain pre { " + chain + "tcp dport 8080 counter dnat to 172.17.0.2; }", []string{`tcp/8080-8080 to "172.17.0.2" by nftables ip nat pre`}},
		{"to several", "ip nat", "chain pre { " + chain + "tcp dport 80 dnat to 10.0.0.1-10.0.0.9:8000-8010; }", []string{`tcp/80-80 to "10.0.0.1-10.0.0.9:8000-8010" by nftables ip nat pre`}},
		{"inet", "inet own", "chain pre { " + chain + "udp dport 53 redirect to :1053; tcp dport 54 dnat ip6 to [fd00::1]:53; }", []string{
			`udp/53-53 to ":1053" by nftables inet own pre`, `tcp/54-54 to "[fd00::1]:53" by nftables inet own pre`,
		}},
		{"several protocols", "inet own", "chain pre { " + chain + "meta l4proto { tcp, udp } th dport 53 redirect to :1053; }", []string{
			`tcp/53-53 to ":1053" by nftables inet own pre`, `udp/53-53 to ":1053" by nftables inet own pre`,
		}},
		{"all protocols", "ip nat", "chain pre { " + chain + `iifname "eth0" dnat to 10.0.0.2; }`, []string{`any/1-65535 to "10.0.0.2" by nftables ip nat pre`}},
		{"sets", "ip nat", "chain pre { " + chain + "tcp dport { 80, 443, 8000-8009, 65000-65535 } redirect to :1; }", []string{
			`tcp/80-80 to ":1" by nftables ip nat pre`, `tcp/443-443 to ":1" by nftables ip nat pre`,
			`tcp/8000-8009 to ":1" by nftables ip nat pre`, `tcp/65000-65535 to ":1" by nftables ip nat pre`,
		}},
		{"all but", "ip nat", "chain pre { " + chain + "tcp dport != { 22, 80-89 } redirect to :1; }", []string{
			`tcp/1-21 to ":1" by nftables ip nat pre`, `tcp/23-79 to ":1" by nftables ip nat pre`, `tcp/90-65535 to ":1" by nftables ip nat pre`,
		}},
		{"comparisons", "ip nat", "chain pre { " + chain + "tcp dport != 5-9 tcp dport < 20 redirect to :1; udp dport >= 65530 redirect to :2; }", []string{
			`tcp/1-4 to ":1" by nftables ip nat pre`, `tcp/10-19 to ":1" by nftables ip nat pre`, `udp/65530-65535 to ":2" by nftables ip nat pre`,
		}},
		{"addresses", "ip nat", "chain pre { " + chain + `
			ip daddr 127.0.0.0/8 tcp dport 1 redirect to :1; ip daddr 127.0.0.0/9 tcp dport 2 redirect to :1
			ip daddr 192.0.2.1 tcp dport 3 redirect to :1; ip daddr { 192.0.2.1, 127.0.0.1 } tcp dport 4 redirect to :1
			ip daddr 127.0.0.1-127.0.0.2 tcp dport 5 redirect to :1; ip daddr != 127.0.0.1 tcp dport 6 redirect to :1; }`, []string{
			`tcp/1-1 for 127.0.0.0/8 to ":1" by nftables ip nat pre`, `tcp/2-2 for 127.0.0.0/9 to ":1" by nftables ip nat pre`,
			`tcp/4-4 for 127.0.0.1 to ":1" by nftables ip nat pre`, `tcp/5-5 for 127.0.0.1-127.0.0.2 to ":1" by nftables ip nat pre`,
			`tcp/6-6 to ":1" by nftables ip nat pre`,
		}},
		{"for this host", "ip nat", "chain pre { " + chain + `
			fib daddr type local tcp dport 1 redirect to :9; fib daddr type != local tcp dport 2 redirect to :9
			fib daddr type unicast tcp dport 3 redirect to :9; }`, []string{`tcp/1-1 to ":9" by nftables ip nat pre`}},
		{"maps", "ip nat", "chain pre { " + chain + `dnat ip to tcp dport map { 80 : 10.0.0.1 . 8080, 90-99 : 10.0.0.2 . 9090 }; }`, []string{
			`tcp/80-80 to "10.0.0.1:8080" by nftables ip nat pre`, `tcp/90-99 to "10.0.0.2:9090" by nftables ip nat pre`,
		}},
		{"in turn", "ip nat", "chain pre { " + chain + `tcp dport 80 dnat to numgen inc mod 2 map { 0 : 10.0.0.1, 1 : 10.0.0.2 }; }`, []string{
			`tcp/80-80 to "10.0.0.1" by nftables ip nat pre`, `tcp/80-80 to "10.0.0.2" by nftables ip nat pre`,
		}},
		{"computed", "ip nat", "chain pre { " + chain + `tcp dport 80 dnat to jhash ip saddr mod 2 offset 167772161; }`, []string{`tcp/80-80 to "" by nftables ip nat pre`}},
		// As kube-proxy writes it for nftables.
		{"kube-proxy", "ip kube-proxy", `
			map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.0.1 . tcp . 443 : goto service-a, 127.0.0.1 . udp . 53 : goto service-b } }
			map service-nodeports { type inet_proto . inet_service : verdict; elements = { tcp . 30080 : goto external-a } }
			chain services { ip daddr . meta l4proto . th dport vmap @service-ips; fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports; }
			chain external-a { goto service-a; }
			chain service-a { numgen random mod 2 vmap { 0 : goto endpoint-1, 1 : goto endpoint-2 }; }
			chain service-b { meta l4proto udp dnat to 10.0.0.9:53; }
			chain endpoint-1 { ip saddr 10.0.0.1 jump mark-for-masquerade; meta l4proto tcp dnat to 10.0.0.1:8443; }
			chain endpoint-2 { meta l4proto tcp dnat to 10.0.0.2:8443; }
			chain mark-for-masquerade { meta mark set mark or 0x4000; }
			chain nat-prerouting { ` + chain + `jump services; }
			chain nat-output { type nat hook output priority -100; jump services; }`, []string{
			`udp/53-53 for 127.0.0.1 to "10.0.0.9:53" by nftables ip kube-proxy service-b`,
			`tcp/30080-30080 to "10.0.0.1:8443" by nftables ip kube-proxy endpoint-1`,
			`tcp/30080-30080 to "10.0.0.2:8443" by nftables ip kube-proxy endpoint-2`,
		}},
		{"intervals of several fields", "ip nat", `
			map m { type ipv4_addr . inet_service : verdict; flags interval; elements = { 127.0.0.0/8 . 8000-8999 : goto there, 0.0.0.0/0 . 22 : accept } }
			chain there { tcp dport 8000-8099 redirect to :1; }
			chain pre { ` + chain + "ip daddr . tcp dport vmap @m; }", []string{`tcp/8000-8099 for 127.0.0.0/8 to ":1" by nftables ip nat there`}},
		{"what comes before", "ip nat", "chain sub { tcp dport 22 return; tcp dport 23 accept; tcp dport 24 drop; meta l4proto tcp redirect to :1; } chain pre { " + chain + "tcp dport 21-25 jump sub; tcp dport 20-26 redirect to :2; }", []string{
			`tcp/20-20 to ":2" by nftables ip nat pre`, `tcp/21-21 to ":1" by nftables ip nat sub`, `tcp/22-22 to ":2" by nftables ip nat pre`,
			`tcp/25-25 to ":1" by nftables ip nat sub`, `tcp/26-26 to ":2" by nftables ip nat pre`,
		}},
		{"source addresses are not for us to say", "ip nat", "chain post { type nat hook postrouting priority srcnat; tcp dport 80 snat to 10.0.0.1; } chain in { type nat hook input priority 100; tcp dport 80 snat to 10.0.0.1; } chain f { type filter hook prerouting priority 0; tcp dport 80 drop; }", nil},
		{"an IPv6 map", "ip6 nat", "map m { type ipv6_addr . inet_service : ipv6_addr . inet_service; elements = { ::1 . 80 : fd00::5 . 8080 } } chain pre { " + chain + "dnat ip6 to ip6 daddr . tcp dport map @m; }", []string{
			`tcp/80-80 for ::1 to "[fd00::5]:8080" by nftables ip6 nat pre`,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			tool(t, "flush ruleset\ntable "+test.table+" {\n"+strings.NewReplacer(";", "\n", "} chain", "}\nchain", "} map", "}\nmap").Replace(test.rules)+"\n}\n", "nft", "-f", "-")
			compare(t, test.want, seen(t, r, 0, 1, 65535))
		})
	}
}
