package binder_test

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/fdbag"
)

// FuzzReadName reads the names of what another process kept.
func FuzzReadName(f *testing.F) {
	for _, name := range []string{"s.1", "l.zz", "a.0", "g.63.1z141z3.4f", "g.1.0.2", "g.300.1.1", "b.1", "", "s", "s.1.2", "g.1.1"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		kind, lent, member, salt, ok := binder.ReadName(name)
		if !ok {
			return
		}
		if member < 0 || member > 255 || (salt != 0) != (kind == 'g') || lent != (kind == 'l' || kind == 'g') {
			t.Errorf("%q: %c %t %d %d", name, kind, lent, member, salt)
		}
		if kind == 'g' {
			again := fmt.Sprintf("g.%d.%s.1", member, strconv.FormatUint(uint64(salt), 36))
			if _, _, m, s, ok := binder.ReadName(again); !ok || m != member || s != salt {
				t.Errorf("%q is not %q", again, name)
			}
		}
	})
}

// FuzzReadNotes reads what another process packed beside sockets.
func FuzzReadNotes(f *testing.F) {
	f.Add([]byte{}, 3)
	f.Add([]byte(`[{"At":0,"Lent":true},{"At":2,"Lent":true,"Member":1,"Salt":7}]`), 3)
	f.Add([]byte(`[{"At":3}]`), 3)
	f.Add([]byte(`[{"At":-1}]`), 3)
	f.Add([]byte(`{`), 1)
	f.Fuzz(func(t *testing.T, payload []byte, n int) {
		if n < 1 || n > fdbag.Most {
			t.Skip()
		}
		if noted, err := binder.ReadNotes(payload, n); err == nil && noted > n {
			t.Errorf("%d notes of %d sockets", noted, n)
		}
	})
}
