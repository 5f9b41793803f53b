package registry

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestParseSpec(t *testing.T) {
	t.Parallel()
	v4, v6 := []netip.Addr{netip.IPv4Unspecified()}, []netip.Addr{netip.IPv6Unspecified()}
	local := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	for text, want := range map[string]EndpointSpec{
		"tcp/8080":              {Protos: []Protocol{TCP}, Exact: PortRange{8080, 8080}},
		"8080/tcp":              {Protos: []Protocol{TCP}, Exact: PortRange{8080, 8080}},
		"tcp 8080":              {Protos: []Protocol{TCP}, Exact: PortRange{8080, 8080}},
		" TCP/8080 ":            {Protos: []Protocol{TCP}, Exact: PortRange{8080, 8080}},
		"tcp4/80":               {Protos: []Protocol{TCP}, Addrs: v4, Exact: PortRange{80, 80}},
		"tcp6/80":               {Protos: []Protocol{TCP}, Addrs: v6, V6Only: true, Exact: PortRange{80, 80}},
		"tcp6/[::]:80":          {Protos: []Protocol{TCP}, Addrs: v6, V6Only: true, Exact: PortRange{80, 80}},
		"tcp/[::]:80":           {Protos: []Protocol{TCP}, Exact: PortRange{80, 80}},
		"tcp/0.0.0.0:80":        {Protos: []Protocol{TCP}, Addrs: v4, Exact: PortRange{80, 80}},
		"tcp/9000-9009":         {Protos: []Protocol{TCP}, Exact: PortRange{9000, 9009}},
		"tcp,udp/53":            {Protos: []Protocol{TCP, UDP}, Exact: PortRange{53, 53}},
		"tcp,udp 53":            {Protos: []Protocol{TCP, UDP}, Exact: PortRange{53, 53}},
		"udp/127.0.0.1:53":      {Protos: []Protocol{UDP}, Addrs: local, Exact: PortRange{53, 53}},
		"127.0.0.1:53/udp":      {Protos: []Protocol{UDP}, Addrs: local, Exact: PortRange{53, 53}},
		"tcp/[::ffff:7f00:1]:5": {Protos: []Protocol{TCP}, Addrs: local, Exact: PortRange{5, 5}},
		"tcp/any":               {Protos: []Protocol{TCP}, Any: &AnyPorts{}},
		"udp/127.0.0.1:any":     {Protos: []Protocol{UDP}, Addrs: local, Any: &AnyPorts{}},
		"tcp/https":             {Protos: []Protocol{TCP}, Service: "https"},
		"tcp/914c/g":            {Protos: []Protocol{TCP}, Service: "914c/g"},
		"cl/1/udp":              {Protos: []Protocol{UDP}, Service: "cl/1"},
		"tcp/*%eth0:80":         {Protos: []Protocol{TCP}, Device: "eth0", Exact: PortRange{80, 80}},
		"tcp/[fe80::1%eth0]%eth1:80": {
			Protos: []Protocol{TCP}, Addrs: []netip.Addr{netip.MustParseAddr("fe80::1%eth0")}, Device: "eth1", Exact: PortRange{80, 80},
		},
		"tcp/8080@blue":        {Netns: "blue", Protos: []Protocol{TCP}, Exact: PortRange{8080, 8080}},
		"unix/run/app.sock":    {Netns: "host", Protos: []Protocol{Unix}, Path: "/run/app.sock"},
		"unix//run/./app.sock": {Netns: "host", Protos: []Protocol{Unix}, Path: "/run/app.sock"},
		"unix:/run/app.sock":   {Netns: "host", Protos: []Protocol{Unix}, Path: "/run/app.sock"},
		"unix /tmp/a b@c/tcp":  {Netns: "host", Protos: []Protocol{Unix}, Path: "/tmp/a b@c/tcp"},
	} {
		got, err := ParseSpec(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if diff := cmp.Diff(want, got, compareAddrs); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

func TestParseSpecRefuses(t *testing.T) {
	t.Parallel()
	for text, says := range map[string]string{
		"":                                 "no protocol",
		"unix run/app":                     "not absolute",
		"unix:app":                         "not absolute",
		"unix/":                            "that names a file",
		"unix/a\nb":                        "control characters",
		"unix/" + strings.Repeat("a", 107): "the kernel takes 107",
		"8080":                             "write tcp/8080 or udp/8080",
		"https":                            "names no protocol",
		"tcp":                              "has no port; write tcp/8080, or tcp/any",
		"tcp,udp6":                         "has no port; write tcp,udp6/8080, or tcp,udp6/any",
		"tcpp/80":                          "names no protocol",
		"cl/1":                             "names no protocol",
		"tcp/0":                            "not a port",
		"tcp/65536":                        "not a port",
		"tcp/-1":                           "not a port",
		"tcp/+80":                          "not a port",
		"tcp/":                             "not a port",
		"tcp/80-70":                        "runs backwards; write 70-80",
		"tcp/::1:80":                       "in brackets",
		"tcp/[::1]":                        "has no port",
		"tcp/[::1:80":                      "closing bracket",
		"tcp/[127.0.0.1]:80":               "not an IP address",
		"tcp/[::1]x:80":                    "after the bracket",
		"tcp/localhost:80":                 "not an IP address",
		"tcp4/[::1]:80":                    "not an IPv4 address",
		"tcp6/127.0.0.1:80":                "not an IPv6 address",
		"tcp,tcp/80":                       "twice",
		"tcp4,udp6/80":                     "mixes address families",
		"tcp/*%:80":                        "network device",
		"tcp/80@":                          "network namespace",
		"tcp/80@a/b":                       "network namespace",
		"tcp/ht\x07tp":                     "not a port",
	} {
		_, err := ParseSpec(text)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %v, want something that says %q", text, err, says)
		}
	}
}

// FuzzParseEndpoint checks that what prints, parses.
func FuzzParseEndpoint(f *testing.F) {
	for _, s := range []string{
		"tcp/8080", "8080/udp", "tcp4/1-65535", "udp6/9", "tcp/[fe80::1%lo]%lo:80", "sctp/127.0.0.1:7", "tcp/*%eth0:80@blue", "tcp 1", "x/y/tcp", "tcp/[::ffff:1.2.3.4]:1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := ParseEndpoint(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%q: %v is not an ErrInvalid", s, err)
			}
			return
		}
		again, err := ParseEndpoint(e.String())
		if e.Netns == HostNetns {
			e.Netns = "" // the host's namespace goes without saying
		}
		if err != nil || again != e {
			t.Fatalf("%q is %#v, which prints as %q, which is %#v, %v", s, e, e, again, err)
		}
		if !e.Overlaps(e) {
			t.Fatalf("%v does not overlap itself", e)
		}
	})
}

func TestValidateName(t *testing.T) {
	t.Parallel()
	for _, ok := range []string{"a", "web", "web-1.blue_2", strings.Repeat("a", 63)} {
		if err := ValidateName(ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "Web", "1web", "we b", "web\n", "wéb", strings.Repeat("a", 64), "rsv_x", "lse_x", "tcp", "udp6", "tcp,udp", "any", "a/b"} {
		if err := ValidateName(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, want ErrInvalid", bad, err)
		}
	}
}

func TestOverlapsIsSymmetric(t *testing.T) {
	t.Parallel()
	var all []Endpoint
	for _, s := range []string{
		"tcp/80", "tcp4/80", "tcp6/80", "tcp/127.0.0.1:80", "tcp/127.0.0.2:80", "tcp/[::1]:80", "tcp/*%a:80", "tcp/*%b:80",
		"tcp4/*%a:80", "udp/80", "tcp/79", "tcp/70-90", "tcp/80@blue", "tcp/[fe80::1%a]:80", "tcp/[fe80::1%b]:80",
	} {
		e, err := ParseEndpoint(s)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	for _, a := range all {
		for _, b := range all {
			if a.Overlaps(b) != b.Overlaps(a) {
				t.Errorf("%v and %v overlap one way only", a, b)
			}
		}
	}
}

func TestOverlapsOnDevices(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"tcp/[fe80::1%lo]:80", "tcp/*%br0:80", false}, // a link-local address is bound to its zone's device
		{"tcp/[fe80::1%lo]:80", "tcp/*%lo:80", true},
		{"tcp/[fe80::1%lo]:80", "tcp/[fe80::1%br0]:80", false},
		{"tcp/[fe80::1%lo]:80", "tcp6/80", true},
		{"tcp/*%lo:80", "tcp/80", true},
		{"tcp4/*%lo:80", "tcp4/*%br0:80", false},
	} {
		a, err := ParseEndpoint(c.a)
		if err != nil {
			t.Fatal(err)
		}
		b, err := ParseEndpoint(c.b)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Overlaps(b); got != c.want {
			t.Errorf("%v, %v: overlap is %v, want %v", a, b, got, c.want)
		}
	}
}
