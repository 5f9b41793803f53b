package binder_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/binder"
	"github.com/portd/portd/internal/fdbag"
	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/nstest"
)

// envWarden makes the test binary the process of a warden, whose socket is descriptor 3.
const envWarden = "PORTD_BINDER_WARDEN"

// A warden is another process at the keeper's end of a store: it has what a Binder puts there, and gives it to the Binder after that one.
type warden struct {
	t     testing.TB
	cfg   binder.Config
	b     *binder.Binder // nil: it is dead
	store *fdstore.Store
	conn  int
}

// keep makes a Binder whose descriptors a warden has, too.
func keep(t testing.TB, cfg binder.Config) *warden {
	t.Helper()
	nstest.Need(t)
	nstest.Descriptors(t)
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	w := &warden{t: t, cfg: cfg}
	ends := w.pair()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envWarden+"=1", noLinger)
	theirs := os.NewFile(uintptr(ends[1]), "warden")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{theirs}, os.Stderr
	err := cmd.Start()
	_ = theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	w.conn = ends[0]
	t.Cleanup(func() {
		w.die()
		_ = unix.Close(w.conn)
		if err := cmd.Wait(); err != nil {
			t.Errorf("warden: %v", err)
		}
	})
	w.begin()
	return w
}

func (w *warden) pair() (ends [2]int) {
	w.t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return ends
}

// tell gives an order, with descriptors.
func (w *warden) tell(order string, fds ...int) {
	w.t.Helper()
	var s fdpass.Sender
	if err := s.Send(w.conn, []byte(order), fds); err != nil {
		w.t.Fatalf("tell the warden to %s: %v", order, err)
	}
}

// ask reads an answer.
func (w *warden) ask(order string, answer any) {
	w.t.Helper()
	w.tell(order)
	text, fds, err := (&reader{conn: w.conn}).next()
	if err == nil {
		err = json.Unmarshal(text, answer)
	}
	if err != nil || len(fds) > 0 {
		w.t.Fatalf("ask the warden to %s: %q, %d descriptors, %v", order, text, len(fds), err)
	}
}

// A reader waits for messages. What it returns is good until the next one.
type reader struct {
	conn int
	r    fdpass.Receiver
	buf  [100 << 10]byte
}

func (r *reader) next() (text []byte, fds []int, err error) {
	for {
		n, fds, err := r.r.Recv(r.conn, r.buf[:])
		if !errors.Is(err, unix.EAGAIN) {
			return r.buf[:n], fds, err
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(r.conn), Events: unix.POLLIN}}, -1)
	}
}

// attached makes a store of what the warden has.
func (w *warden) attached() *fdstore.Store {
	w.t.Helper()
	w.tell("give")
	given, err := fdstore.Receive(w.conn)
	if err != nil {
		w.t.Fatal(err)
	}
	ends := w.pair()
	w.tell("serve", ends[1])
	_ = unix.Close(ends[1])
	store := fdstore.New(w.cfg.Log)
	store.Inherit(given.Items)
	if err := store.AttachSame(ends[0], -1); err != nil {
		w.t.Fatal(err)
	}
	return store
}

// begin makes a Binder of what the warden has.
func (w *warden) begin() {
	w.t.Helper()
	w.store = w.attached()
	w.open()
}

func (w *warden) open() {
	w.t.Helper()
	cfg := w.cfg
	cfg.Keep, cfg.Items = w.store, w.store.Items()
	var err error
	if w.b, err = binder.New(cfg); err != nil {
		w.t.Fatal(err)
	}
}

// die is what the death of its process leaves of a Binder: everything is closed as it is, and the warden has what it was told to.
func (w *warden) die() {
	if w.b != nil {
		w.b.Close()
		w.store.Close()
		w.b = nil
		w.ended()
	}
}

// ended returns when the warden has done all that a store said that is closed.
func (w *warden) ended() {
	w.t.Helper()
	var errs []string
	if w.ask("end", &errs); len(errs) > 0 {
		w.t.Errorf("the warden says: %s", strings.Join(errs, "; "))
	}
}

// names are those of what the warden has, once it has heard all.
func (w *warden) names() (names []string) {
	w.t.Helper()
	w.store.Settle(w.t.Context())
	w.ask("names", &names)
	return names
}

// sockets are the inodes of all that the warden has, in bags too, in order.
func (w *warden) sockets() (inodes []uint64) {
	w.t.Helper()
	w.store.Settle(w.t.Context())
	w.ask("sockets", &inodes)
	return inodes
}

// unclaimed is Unclaimed, of which so many are wanted.
func (w *warden) unclaimed(want int) {
	w.t.Helper()
	if closed := w.b.Unclaimed(); len(closed) != want {
		w.t.Errorf("unclaimed: %v, want %d", closed, want)
	}
}

// A vault is the warden's process.
type vault struct {
	mu    sync.Mutex
	items map[string]int
	errs  []string
}

func beWarden() int {
	v := &vault{items: map[string]int{}, errs: []string{}}
	ended := make(chan struct{})
	close(ended)
	orders := &reader{conn: 3}
	for {
		order, fds, err := orders.next()
		if err != nil {
			return 0
		}
		var answer any
		switch string(order) {
		case "serve":
			ended = make(chan struct{})
			go v.serve(fds[0], ended)
			continue
		case "give":
			err = v.give()
		case "end":
			<-ended
			answer, v.errs = v.errs, []string{}
		case "names":
			v.mu.Lock()
			answer = slices.AppendSeq([]string{}, maps.Keys(v.items))
			slices.Sort(answer.([]string))
			v.mu.Unlock()
		case "sockets":
			answer, err = v.sockets()
		}
		if answer != nil && err == nil {
			var s fdpass.Sender
			text, _ := json.Marshal(answer)
			err = s.Send(3, text, nil)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "warden: %s: %v\n", order, err)
			return 1
		}
	}
}

func (v *vault) give() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var items []fdstore.Item
	for _, name := range slices.Sorted(maps.Keys(v.items)) {
		items = append(items, fdstore.Item{Name: name, FD: v.items[name]})
	}
	return errors.Join(fdstore.GiveItems(3, items), fdstore.GiveEnd(3))
}

// serve does what a store says until that is closed.
func (v *vault) serve(conn int, ended chan<- struct{}) {
	defer close(ended)
	defer unix.Close(conn)
	words := &reader{conn: conn}
	for {
		text, fds, err := words.next()
		if err != nil {
			return
		}
		said, err := fdstore.Parse(text)
		v.mu.Lock()
		old, has := v.items[said.Name]
		switch {
		case err != nil:
			v.errs = append(v.errs, fmt.Sprintf("%q: %v", text, err))
		case said.Store && len(fds) == 1 && !has:
			v.items[said.Name], fds = fds[0], nil
		case said.Remove && has:
			_ = unix.Close(old)
			delete(v.items, said.Name)
		case !said.Barrier:
			v.errs = append(v.errs, fmt.Sprintf("%q, with %d descriptors", text, len(fds)))
		}
		v.mu.Unlock()
		for _, fd := range fds { // of a barrier
			_ = unix.Close(fd)
		}
	}
}

func (v *vault) sockets() (inodes []uint64, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	inodes = []uint64{}
	note := func(fds ...int) {
		for _, fd := range fds {
			var st unix.Stat_t
			err = errors.Join(err, unix.Fstat(fd, &st))
			inodes = append(inodes, st.Ino)
		}
	}
	for name, fd := range v.items {
		if !strings.HasPrefix(name, "a.") && !strings.HasPrefix(name, "b.") {
			note(fd)
			continue
		}
		bag, ferr := fdbag.From(fd)
		if ferr != nil {
			return nil, ferr
		}
		fds, ferr := bag.Open()
		if ferr != nil {
			return nil, ferr
		}
		note(fds...)
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
	slices.Sort(inodes)
	return inodes, err
}
