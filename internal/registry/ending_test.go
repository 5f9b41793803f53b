package registry_test

import (
	"errors"
	"fmt"
	"regexp"
	"testing"
	"time"

	"github.com/portd/portd/internal/registry"
)

// TestTakenSaysForHowLong: whoever stands in the way is told with since when, and what will end it.
func TestTakenSaysForHowLong(t *testing.T) {
	t.Parallel()
	store, pegs := newStandIns()
	r, _ := start(t, store, pegs, registry.Config{Processes: watcher(t)})
	pid, _ := sleeper(t)
	hour := ttl(time.Hour)
	session, err := r.OpenSession(t.Context(), someone(), time.Second, "")
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	const at = `\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+`
	for i, tt := range []struct {
		req  registry.ReserveRequest
		want string
		ends bool // at a time
	}{
		{registry.ReserveRequest{}, "", false},
		{registry.ReserveRequest{NewLease: &hour}, ", with a lease: ttl 1h0m0s, until " + at, true},
		{registry.ReserveRequest{NewLease: byProcess(pid)}, fmt.Sprintf(`, with a lease: process %d \(sleep\)`, pid), false},
		{registry.ReserveRequest{Lease: session.Lease.ID}, ", with a lease: session", false},
	} {
		text := fmt.Sprint("tcp/", 8080+i)
		tt.req.Spec, tt.req.Name = spec(t, text), fmt.Sprint("n", i)
		res, err := r.Reserve(t.Context(), someone(), tt.req)
		if err != nil {
			t.Fatal(err)
		}
		if ends := r.Ending(res.Lease); ends.Expires.IsZero() == tt.ends || (ends.Lease == "") != (tt.want == "") {
			t.Errorf("%s ends with %+v", text, ends)
		}
		other := registry.ReserveRequest{Spec: spec(t, fmt.Sprint("tcp/", 9080+i)), Name: tt.req.Name}
		for what, req := range map[string]registry.ReserveRequest{
			"port": {Spec: spec(t, text)}, "port, with a request id": {Spec: spec(t, text), RequestID: "again"}, "name": other,
		} {
			_, err = r.Reserve(t.Context(), bob, req)
			if !errors.Is(err, registry.ErrTaken) {
				t.Fatalf("%s of %s: got %v, want ErrTaken", what, text, err)
			}
			assigned := "; assigned to " + [...]string{"http-alt", "sunproxyadmin", "us-cli", "us-srv"}[i] + " in the service registry"
			if what == "name" {
				assigned = ""
			}
			want := fmt.Sprintf(`is taken: reserved by "n%d" \(%s, .*\) since %s%s%s$`, i, res.ID, at, tt.want, assigned)
			if !regexp.MustCompile(want).MatchString(err.Error()) {
				t.Errorf("%s of %s:\n%v\nwant …%s", what, text, err, want)
			}
		}
	}
	if e := r.Ending("lse_no"); e != (registry.Ending{}) {
		t.Errorf("a lease that is not there ends with %+v", e)
	}
}
