package ianadb_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/portd/portd/internal/ianadb"
)

// service is a match as the tests write it: "https 443 tcp,udp".
func service(m ianadb.Match) string {
	var protocols []string
	for _, r := range m.Records {
		protocols = append(protocols, r.Protocol().String())
	}
	e := m.Records[0].Entry()
	return strings.TrimSpace(e.Name + " " + e.Port + " " + strings.Join(protocols, ","))
}

// TestSearchFirst: what a person looks for comes first.
func TestSearchFirst(t *testing.T) {
	d := directory(t)
	for _, tt := range []struct {
		words    string
		protocol ianadb.Protocol
		want     []string // the first matches
	}{
		{"http", any_, []string{"http 80 tcp,udp", "http 80 sctp", "https 443 tcp,udp", "https 443 sctp"}},
		{"http", sctp, []string{"http 80 sctp", "https 443 sctp"}},
		{"https", udp, []string{"https 443 udp", "https-wmap 8991 udp"}},
		{"HTTPS", tcp, []string{"https 443 tcp", "https  tcp", "https-wmap 8991 tcp", "wbem-https 5989 tcp"}},
		{"postgres", any_, []string{"postgresql 5432 tcp,udp", "pgbackrest 8432 tcp"}},
		{"http alternate", any_, []string{"http-alt 591 tcp,udp", "http-alt 8008 tcp,udp", "http-alt 8080 tcp,udp"}},
		{"alternate  HTTP", any_, []string{"http-alt 591 tcp,udp", "http-alt 8008 tcp,udp", "http-alt 8080 tcp,udp"}},
		{"simple mail", any_, []string{"smtp 25 tcp,udp"}},
		{"mail", any_, []string{"mail", "mailq 174 tcp,udp", "mailbox 2004 tcp"}},
		{"imap", any_, []string{"imap 143 tcp", "imap3 220 tcp,udp", "imaps 993 tcp", "imap2"}},
		{"x11", any_, []string{"x11 6000-6063 tcp,udp"}},
		{"port 6003", any_, []string{"x11 6000-6063 tcp,udp"}}, // reported there as used without permission
		{"irc", any_, []string{"irc 194 tcp,udp", "ircu 6665-6669 tcp", "ircs-u 6697 tcp"}},
		{"flex", dccp, []string{"flex-lm 27000-27009"}}, // for every protocol
		{"z39.50", any_, []string{"z39.50 210 tcp,udp", "z39-50 210 tcp,udp"}},
		{"cl/1", any_, []string{"cl/1 172 tcp,udp", "cl-1 172 tcp,udp"}},
		{"DEC_DLM", any_, []string{"dec_dlm 625 tcp,udp", "dec-dlm 625 tcp,udp"}},
		{"dec dlm", any_, []string{"dec-dlm 625 tcp,udp", "dec_dlm 625 tcp,udp"}},
		{"forté", any_, []string{"vision-mon 4413 tcp", "vision-mon-disc 4413 udp"}},
		{"SWŸP", any_, []string{"swyp"}},
		{"remote desktop windows", any_, []string{"rdp"}},
		{"private terminal", any_, []string{"57 tcp,udp"}},
		{"unassigned frp-released", any_, []string{"2925"}},
		{"e-mail-nowhere", any_, nil},
		{"e-mail-nowhere no-such-thing", any_, nil},
		{"mail nowhere-at-all", any_, []string{"mail", "mailq 174 tcp,udp", "mailbox 2004 tcp"}}, // none has both
		{"message submission nowhere-at-all", any_, []string{"submission 587 tcp,udp", "submissions 465 tcp"}},
		{"http http HTTP", sctp, []string{"http 80 sctp", "https 443 sctp"}},
	} {
		matches, total := d.Search(tt.words, tt.protocol, 0, max(len(tt.want), 1))
		var got []string
		for _, m := range matches {
			got = append(got, service(m))
		}
		if diff := cmp.Diff(tt.want, got); diff != "" || total < len(tt.want) {
			t.Errorf("%q, %v: %d (-want +got):\n%s", tt.words, tt.protocol, total, diff)
		}
	}
}

// A matched is a match without its place.
type matched struct {
	columns string // all but the protocol
	records string // the protocols
}

// withoutProtocol is a row's other columns as one text; none has a NUL in it.
func withoutProtocol(r []string) string { return strings.Join(append(r[:2:2], r[3:]...), "\x00") }

// naiveSearch groups the rows and looks for each word in the five columns, of which texts has the lower-cased cells. It
// takes those that lack the fewest words.
func naiveSearch(all, texts [][]string, words string, p ianadb.Protocol) map[matched]bool {
	groups := map[string][]string{}
	distinct := slices.Compact(slices.Sorted(slices.Values(strings.Fields(strings.ToLower(words)))))
	fewest := len(distinct) - 1
	for i, r := range all {
		if p != any_ && r[2] != "" && r[2] != p.String() {
			continue
		}
		lacks := 0
		for _, word := range distinct {
			if !slices.ContainsFunc(texts[i], func(cell string) bool { return strings.Contains(cell, word) }) {
				lacks++
			}
		}
		if lacks > fewest {
			continue
		}
		if lacks < fewest {
			fewest = lacks
			clear(groups)
		}
		key := withoutProtocol(r)
		groups[key] = append(groups[key], r[2])
	}
	set := map[matched]bool{}
	for key, protocols := range groups {
		set[matched{key, strings.Join(protocols, ",")}] = true
	}
	return set
}

// TestSearchFindsAll compares the matches with a plain scan of the rows, for words of people and pieces of cells.
func TestSearchFindsAll(t *testing.T) {
	d, all := directory(t), rows(t)
	var texts [][]string
	for _, r := range all {
		var cells []string
		for _, column := range []int{0, 3, 4, 10, 11} {
			cells = append(cells, ianadb.Collapse(strings.ToLower(r[column])))
		}
		texts = append(texts, cells)
	}
	queries := append(slices.Clone(nasty), "mail", "http", "database sql", "remote", "tls", "unassigned", "josé", "Š", "”")
	random := rand.New(rand.NewPCG(6335, 1))
	for range long(30, 10) {
		var words []string
		for range 1 + random.IntN(2) {
			cell := []rune(strings.Join(strings.Fields(all[random.IntN(len(all))][[]int{0, 3, 4, 11}[random.IntN(4)]]), " "))
			from := random.IntN(len(cell) + 1)
			words = append(words, string(cell[from:min(len(cell), from+1+random.IntN(12))]))
		}
		queries = append(queries, strings.Join(words, " "))
	}
	for _, words := range queries {
		if ianadb.CheckSearch(words) != nil {
			continue
		}
		p := []ianadb.Protocol{any_, any_, tcp, sctp}[random.IntN(4)]
		matches, total := d.Search(words, p, 0, 1<<30)
		got := map[matched]bool{}
		for i, m := range matches {
			var protocols []string
			for _, r := range m.Records {
				protocols = append(protocols, r.Protocol().String())
			}
			r := row(m.Records[0].Entry())
			got[matched{withoutProtocol(r), strings.Join(protocols, ",")}] = true
			if i > 0 && m.Kind < matches[i-1].Kind {
				t.Errorf("%q, %v: match %d is %v after %v", words, p, i, m.Kind, matches[i-1].Kind)
			}
		}
		if want := naiveSearch(all, texts, words, p); total != len(want) || !maps.Equal(want, got) {
			t.Errorf("%q, %v: %d matches, %d listed, want %d", words, p, total, len(got), len(want))
		}
	}
}

// TestSearchKinds compares kinds with what a regular expression says of the cells.
func TestSearchKinds(t *testing.T) {
	d := directory(t)
	for _, word := range []string{"http", "mail", "e", "a", "ip", "sql", "server", "x", "1", "forté", "ibm", "z39"} {
		whole := regexp.MustCompile(`(^|[^\pL\p{Nd}])` + word + `($|[^\pL\p{Nd}])`)
		matches, _ := d.Search(word, any_, 0, 1<<30)
		for _, m := range matches {
			e, want := m.Records[0].Entry(), ianadb.Substring
			switch name := strings.ToLower(e.Name); {
			case name == word:
				want = ianadb.ExactName
			case strings.HasPrefix(name, word):
				want = ianadb.NamePrefix
			case slices.ContainsFunc([]string{e.Name, e.Description, e.Assignee, e.UnauthorizedUse, e.Notes}, func(cell string) bool {
				return whole.MatchString(strings.ToLower(cell))
			}):
				want = ianadb.WholeWord
			}
			if m.Kind != want {
				t.Errorf("%s: %s is %v, want %v", word, service(m), m.Kind, want)
			}
		}
	}
}

// TestSearchOrder: within a kind the host's own come first, then names, then descriptions, then the rest.
func TestSearchOrder(t *testing.T) {
	d := directory(t,
		"zebra-zq 9 tcp", "zq 5 tcp", "zqa 7000 tcp", "zqa 6000 tcp", "zqab 1 tcp", "zqa  tcp", "azqb 8 tcp", "zebra 7 tcp about zq",
		"yak 3 tcp about zq", "zq 5 udp", "ox 2 tcp the azqb", " 4 tcp zq", "https 8443 tcp mine")
	var got []string
	matches, total := d.Search("zq", any_, 0, 20)
	for _, m := range matches {
		got = append(got, fmt.Sprintf("%s: %v", service(m), m.Kind))
	}
	want := []string{
		"zq 5 tcp,udp: exact", "zqa 6000 tcp: prefix", "zqa 7000 tcp: prefix", "zqa  tcp: prefix", "zqab 1 tcp: prefix",
		"zebra-zq 9 tcp: word", "yak 3 tcp: word", "zebra 7 tcp: word", "4 tcp: word", "azqb 8 tcp: substring", "ox 2 tcp: substring",
	}
	if diff := cmp.Diff(want, got[:min(len(want), len(got))]); diff != "" || total < len(want) {
		t.Errorf("zq: %d (-want +got):\n%s", total, diff)
	}
	matches, _ = d.Search("https", tcp, 0, 3)
	if len(matches) != 3 || !d.IsOwn(matches[0].Records[0]) || service(matches[1]) != "https 443 tcp" {
		t.Errorf("https: %v, want the host's own first", matches)
	}
}

func TestSearchPages(t *testing.T) {
	d := directory(t, "web-mail 9000 tcp")
	all, total := d.Search("web", any_, 0, 1<<30)
	if len(all) != total || total < 50 {
		t.Fatalf("%d matches, said %d", len(all), total)
	}
	key := func(m ianadb.Match) string { return fmt.Sprint(m.Kind, m.Records[0].Entry()) }
	for _, limit := range []int{1, 7, total, total + 1} {
		var paged []ianadb.Match
		for skip := 0; skip < total; skip += limit {
			page, n := d.Search("web", any_, skip, limit)
			if n != total || len(page) > limit {
				t.Fatalf("skip %d, limit %d: %d of %d", skip, limit, len(page), n)
			}
			paged = append(paged, page...)
		}
		if !slices.EqualFunc(all, paged, func(a, b ianadb.Match) bool { return key(a) == key(b) }) {
			t.Errorf("limit %d: the pages are not the whole", limit)
		}
	}
	for _, tt := range [][2]int{{total, 10}, {1 << 40, 10}, {0, 0}, {0, -1}} {
		if page, n := d.Search("web", any_, tt[0], tt[1]); len(page) != 0 || n != total {
			t.Errorf("skip %d, limit %d: %d of %d, want none of %d", tt[0], tt[1], len(page), n, total)
		}
	}
	if page, _ := d.Search("web", any_, -3, 2); len(page) != 2 || key(page[0]) != key(all[0]) {
		t.Errorf("skip -3: not the first page")
	}
}

func TestCheckSearch(t *testing.T) {
	d := directory(t)
	for words, want := range map[string]string{
		"e":                       "",
		"a b c d e f g h":         "",
		strings.Repeat("x", 256):  "",
		"":                        "nothing",
		" \t\n":                   "nothing",
		"a b c d e f g h i":       "9 words, 8 are the most",
		strings.Repeat("e", 257):  "257 bytes, 256 are the most",
		strings.Repeat("e ", 200): "400 bytes",
	} {
		err := ianadb.CheckSearch(words)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.20q: %v, want %q", words, err, want)
		}
		if _, total := d.Search(words, any_, 0, 1); want != "" && total != 0 {
			t.Errorf("%.20q: %d matches of a search that is refused", words, total)
		}
	}
}

// TestSearchTogether: the first searches prepare, and the others wait for them.
func TestSearchTogether(t *testing.T) {
	d := directory(t, "web-mail 9000 tcp")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			d.Prepare()
			if _, total := d.Search("web", any_, 0, 1); total < 50 {
				t.Errorf("%d matches", total)
			}
		})
	}
	wg.Wait()
}

func FuzzSearch(f *testing.F) {
	for _, words := range append(slices.Clone(nasty), "İ", "ſ", "\u212a", "\ufffd") {
		f.Add(words)
	}
	d := directory(f, "forté-web 9000 tcp FORTÉ ſtraße \u212a")
	d.Prepare()
	f.Fuzz(func(t *testing.T, words string) {
		matches, total := d.Search(words, any_, 0, 3)
		if len(matches) > total || total > 0 != (len(matches) > 0) {
			t.Errorf("%d matches of %d", len(matches), total)
		}
		// Case does not matter where upper and lower are each other's.
		swapped := strings.Map(func(r rune) rune {
			if u := unicode.ToUpper(r); unicode.ToLower(u) == r {
				return u
			}
			return r
		}, strings.ToValidUTF8(words, "\ufffd"))
		if ianadb.CheckSearch(swapped) == nil && ianadb.CheckSearch(words) == nil {
			if _, n := d.Search(swapped, any_, 0, 3); n != total {
				t.Errorf("%q finds %d, %q finds %d", words, total, swapped, n)
			}
		}
	})
}

// TestMemory: the whole registry, ready to be searched, costs a daemon little.
func TestMemory(t *testing.T) {
	blob, err := os.Stat("registry.bin")
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC() // pools are empty after the second
	runtime.ReadMemStats(&before)
	d := ianadb.Directory{IANA: ianadb.Embedded()}
	d.Prepare()
	runtime.GC()
	runtime.ReadMemStats(&after)
	heap := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("embedded %d KiB, heap for searches %d KiB", blob.Size()>>10, heap>>10)
	if most := int64(8 << 20); heap < 100<<10 || blob.Size()+heap > most {
		t.Errorf("embedded %d bytes, heap %d bytes: more than %d, or not measured", blob.Size(), heap, most)
	}
	runtime.KeepAlive(d)
}

// nasty are searches that have much to do: all of the documents, all of a document, all of the words.
var nasty = []string{
	"e", "a", "i", " o ", ".", "-", "]", "[", "1", "0", "ee", "in", "er", "the", "an", "re", "e]", "s ]", "a e i o", "e a r i o t n s",
	"s t o r i n e l", "er in on re te at es st", "in er ti on te re or an", "[ ] e a r i o t", "ser erv rvi vic ice pro rot oto",
	"service protocol server port name assigned for this", "unassigned", "Unassigned reserved", "previously removed entry",
	"assigned this well-formed service name as a", "txt defined keys", "dated", "ssss", "é", "\x80", "\xff\xfe", "…",
	strings.Repeat("e", 256), strings.Repeat("e", 31) + strings.Repeat(" "+strings.Repeat("a", 31), 7), strings.Repeat("ab", 128),
	strings.Repeat("serv", 64), strings.Repeat("é", 128), "e" + strings.Repeat(" ", 254) + "a", strings.Repeat("s", 63), strings.Repeat("in", 32),
}
