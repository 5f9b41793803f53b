package ianadb_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNear(t *testing.T) {
	d := directory(t, "Orders-API 8123 tcp", "httpz 8124 tcp", "httpz 8125 udp")
	for name, want := range map[string]string{ // the first ones
		"htpps":                      "https",
		"hhtp":                       "http",
		"tfp":                        "ftp tftp",
		"smpt":                       "smtp",
		"telent":                     "telnet",
		"kerbros":                    "kerberos",
		"smtps":                      "smtp",
		"imap4":                      "imap imap3 imaps imap2",
		"postgres":                   "postgresql",
		"postgresql13":               "postgresql",
		"etcd":                       "etcd-client etcd-server",
		"mysqld":                     "mysql",
		"redis-server":               "redis",
		"sun_rpc":                    "sunrpc sun-rpc", // hyphens do not tell them apart here
		"DEC DLM":                    "dec-dlm dec_dlm",
		"sqlnet":                     "sql-net sql*net",
		"HTTPS":                      "https",
		"orders_api":                 "Orders-API",
		"order":                      "Orders-API",
		"httpy":                      "httpz http https httpx", // the host's own first, once
		"3com_nsd":                   "3Com-nsd",
		"1passwrd":                   "1password",
		"asdfqwer":                   "",
		"zzzzzzz":                    "",
		"qqqq":                       "",
		"foobar":                     "",
		"12345":                      "",
		"":                           "",
		"-":                          "",
		"a":                          "",
		"\xff\xff\xff":               "",
		"日本語":                        "",
		"--------":                   "",
		"kubernetes":                 "",
		"httpqwertyuiop":             "",
		"aaaaaaaaaaaaaaa":            "",
		strings.Repeat("http", 1000): "",
	} {
		got := d.Near(name)
		first := strings.Join(got[:min(len(got), max(len(strings.Fields(want)), 1))], " ")
		if first != want || len(got) > 5 {
			t.Errorf("%.40q: %v, want %q first", name, got, want)
		}
	}
}

// TestNearLongNames: a registry may bring longer names than IANA's.
func TestNearLongNames(t *testing.T) {
	long := strings.Repeat("abcdefgh", 5)
	d := directory(t, long[:31]+" 1 tcp", long[:32]+" 2 tcp", long[:34]+" 3 tcp", long+" 4 tcp")
	want := []string{long[:32], long[:31], long[:34], long}
	if diff := cmp.Diff(want, d.Near(long[:32])); diff != "" {
		t.Errorf("32 letters (-want +got):\n%s", diff)
	}
	if got := d.Near(long[:33]); got != nil {
		t.Errorf("33 letters: %v, want none", got)
	}
}

// TestNearFindsBack: every name is near itself, and to whoever swaps two of its letters.
func TestNearFindsBack(t *testing.T) {
	d := directory(t)
	random := rand.New(rand.NewPCG(6335, 2))
	var names []string
	for r := range d.All() {
		if r.Name() != "" {
			names = append(names, r.Name())
		}
	}
	tried, missed := 0, 0
	for range long(300, 100) {
		name := names[random.IntN(len(names))]
		if got := d.Near(strings.ToUpper(name)); len(got) == 0 || got[0] != name {
			t.Errorf("%s: %v, want itself first", strings.ToUpper(name), got)
		}
		if len(name) < 5 {
			continue
		}
		b := []byte(name)
		i := 1 + random.IntN(len(b)-2)
		b[i], b[i+1] = b[i+1], b[i]
		tried++
		if !slices.Contains(d.Near(string(b)), name) {
			missed++
			t.Logf("%s: %v, want %s among them", b, d.Near(string(b)), name)
		}
	}
	if missed*50 > tried { // five others may be as near
		t.Errorf("%d of %d swapped names were not found back", missed, tried)
	}
}

func FuzzNear(f *testing.F) {
	for _, name := range []string{"htpps", "postgres", "", "-", "\xff", "sql*net", strings.Repeat("x", 33)} {
		f.Add(name)
	}
	d := directory(f, "orders 8123 tcp")
	f.Fuzz(func(t *testing.T, name string) {
		got := d.Near(name)
		if len(got) > 5 {
			t.Errorf("%q: %v", name, got)
		}
		for i, n := range got {
			if slices.Contains(got[:i], n) || brief(d.ByName(n, any_)) == "" {
				t.Errorf("%q: %s is no name, or there twice: %v", name, n, got)
			}
		}
		if again := d.Near(name); !cmp.Equal(got, again) {
			t.Errorf("%q: %v, then %v", name, got, again)
		}
	})
}
