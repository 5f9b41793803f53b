package netns_test

import (
	"strings"
	"testing"

	"github.com/portd/portd/internal/netns"
)

func TestUnescape(t *testing.T) {
	for text, want := range map[string]string{
		`/run/netns/blue`: "/run/netns/blue", `/a\040b\011c`: "/a b\tc", `/a\134040`: `/a\040`, `/a\04`: `/a\04`, `/a\999`: `/a\999`, "": "",
	} {
		if got := netns.Unescape(text); got != want {
			t.Errorf("%s is %q, want %q", text, got, want)
		}
	}
}

// What is read as a link is one, and prints as it did, but for zeros before the number.
func FuzzParseLink(f *testing.F) {
	for _, seed := range []string{"net:[4026531840]", "net:[]", "net:[1", "mnt:[4026531841]", "net:[-1]", "net:[99999999999999999999]", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		inode, ok := netns.ParseLink(text)
		plain := strings.Replace(text, "[0", "[", 1)
		if ok && inode != 0 && !strings.Contains(plain, "[0") && netns.LinkTo(inode) != text && netns.LinkTo(inode) != plain {
			t.Errorf("%q is read as %d, which is %q", text, inode, netns.LinkTo(inode))
		}
		if len(netns.Unescape(text)) > len(text) {
			t.Errorf("%q grows", text)
		}
	})
}
