package fdstore_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/nstest"
)

// A peer is the other end of a Store, which does what a keeper does.
type peer struct {
	conn int

	mu    sync.Mutex
	items map[string]int
	said  []string // words that are about no descriptor
	ended chan struct{}
}

// pair is a socket for a Store, and the peer that reads the other end of it. The Store closes its own.
func pair(t *testing.T) (int, *peer) {
	t.Helper()
	ends := socketpair(t)
	p := &peer{conn: ends[1], items: map[string]int{}, ended: make(chan struct{})}
	go p.run()
	t.Cleanup(func() {
		_ = unix.Shutdown(p.conn, unix.SHUT_RDWR)
		<-p.ended
	})
	return ends[0], p
}

func socketpair(t *testing.T) [2]int {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	return ends
}

func (p *peer) run() {
	defer close(p.ended)
	defer func() {
		for _, fd := range p.items {
			_ = unix.Close(fd)
		}
		_ = unix.Close(p.conn)
	}()
	var r fdpass.Receiver
	var fresh map[string]bool
	buf := make([]byte, 4096)
	for {
		n, fds, err := r.Recv(p.conn, buf)
		if errors.Is(err, unix.EAGAIN) {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(p.conn), Events: unix.POLLIN}}, -1)
			continue
		}
		if err != nil {
			return
		}
		w, err := fdstore.Parse(buf[:n])
		if err != nil {
			return
		}
		p.mu.Lock()
		switch {
		case w.Store && len(fds) == 1:
			p.drop(w.Name)
			p.items[w.Name] = fds[0]
			fds = nil
			if fresh != nil {
				fresh[w.Name] = true
			}
		case w.Remove:
			p.drop(w.Name)
		case w.Begin:
			fresh = map[string]bool{}
		case w.End:
			for name := range p.items {
				if !fresh[name] {
					p.drop(name)
				}
			}
			fresh = nil
		case !w.Barrier:
			p.said = append(p.said, string(buf[:n]))
		}
		p.mu.Unlock()
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}

func (p *peer) drop(name string) {
	if fd, ok := p.items[name]; ok {
		_ = unix.Close(fd)
		delete(p.items, name)
	}
}

// has is what the peer has, by the inode of each.
func (p *peer) has(t *testing.T) map[string]uint64 {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[string]uint64{}
	for name, fd := range p.items {
		all[name] = inode(t, fd)
	}
	return all
}

func (p *peer) heard() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.said)
}

func inode(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// thing is a descriptor of something that has an inode of its own.
func thing(t *testing.T) int {
	t.Helper()
	fd, err := unix.MemfdCreate("thing", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func inodes(t *testing.T, items ...fdstore.Item) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	for _, it := range items {
		all[it.Name] = inode(t, it.FD)
	}
	return all
}

func want(t *testing.T, p *peer, items ...fdstore.Item) {
	t.Helper()
	if diff := cmp.Diff(inodes(t, items...), p.has(t)); diff != "" {
		t.Errorf("the keeper has (-want +got):\n%s", diff)
	}
}

// attached is a Store with a keeper.
func attached(t *testing.T) (*fdstore.Store, *peer) {
	t.Helper()
	fd, p := pair(t)
	s := fdstore.New(nil)
	t.Cleanup(s.Close)
	if err := s.Attach(fd, -1); err != nil {
		t.Fatal(err)
	}
	return s, p
}

func TestPutAndRemove(t *testing.T) {
	nstest.Descriptors(t)
	a, b, c := thing(t), thing(t), thing(t)
	s := fdstore.New(nil)
	defer s.Close()
	s.Put("s.1", a) // before there is a keeper
	if s.Kept() {
		t.Error("kept without a keeper")
	}
	fd, p := pair(t)
	if err := s.Attach(fd, -1); err != nil {
		t.Fatal(err)
	}
	s.Put("s.2", b)
	s.Settle(t.Context())
	want(t, p, fdstore.Item{Name: "s.1", FD: a}, fdstore.Item{Name: "s.2", FD: b})
	if !s.Kept() {
		t.Error("not kept with a keeper")
	}
	s.Put("s.2", c)
	s.Remove("s.1", "nosuch")
	s.Settle(t.Context())
	want(t, p, fdstore.Item{Name: "s.2", FD: c})
	if diff := cmp.Diff([]fdstore.Item{{Name: "s.2", FD: c}}, s.Items()); diff != "" {
		t.Error(diff)
	}
}

func TestNil(t *testing.T) {
	var s *fdstore.Store
	s.Put("s.1", 0)
	s.Remove("s.1")
	s.Settle(t.Context())
	s.Notify("READY=1")
	s.Close()
	if s.Items() != nil || s.Kept() {
		t.Error("a nil Store has something")
	}
}

func TestManyAtOnce(t *testing.T) {
	s, p := attached(t)
	var all []fdstore.Item
	var wg sync.WaitGroup
	for i := range 600 { // more than there is room for in a socket
		fd := thing(t)
		name := fmt.Sprintf("s.%d", i)
		if i%3 != 0 {
			all = append(all, fdstore.Item{Name: name, FD: fd})
		}
		wg.Go(func() {
			s.Put(name, fd)
			if i%3 == 0 {
				s.Remove(name)
				s.Settle(t.Context())
				if _, has := p.has(t)[name]; has {
					t.Errorf("%s is there after Settle", name)
				}
			}
		})
	}
	wg.Wait()
	s.Settle(t.Context())
	want(t, p, all...)
}

func TestInherited(t *testing.T) {
	nstest.Descriptors(t)
	fd, p := pair(t)
	s := fdstore.New(nil)
	defer s.Close()
	a, b := thing(t), thing(t)
	s.Inherit([]fdstore.Item{{Name: "s.1z", FD: a}, {Name: "g.3.7", FD: b}, {Name: "control", FD: b}})
	if err := s.AttachSame(fd, -1); err != nil {
		t.Fatal(err)
	}
	// Those that are claimed, under the same descriptor or another one of the same, are not sent again.
	s.Put("s.1z", a)
	dup, err := unix.Dup(b)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dup)
	s.Put("g.3.7", dup)
	s.Settle(t.Context())
	want(t, p)
	if got := s.NextName("s."); got != "s.20" {
		t.Errorf("the next name is %s", got)
	}
	s.Put("g.3.7", a) // another one
	s.Settle(t.Context())
	want(t, p, fdstore.Item{Name: "g.3.7", FD: a})
}

func TestMuted(t *testing.T) {
	nstest.Descriptors(t)
	s, p := attached(t)
	a, b, c := thing(t), thing(t), thing(t)
	s.Put("a", a)
	s.Settle(t.Context())
	s.Mute()
	s.Put("b", b)
	s.Put("c", c)
	s.Remove("a", "c")
	s.Notify("READY=1")
	s.Settle(t.Context()) // does not wait
	want(t, p, fdstore.Item{Name: "a", FD: a})
	s.Unmute()
	s.Settle(t.Context())
	want(t, p, fdstore.Item{Name: "b", FD: b})
	if said := p.heard(); said != nil {
		t.Errorf("the keeper heard %q", said)
	}
}

func TestRestate(t *testing.T) {
	nstest.Descriptors(t)
	s, p := attached(t)
	a, b := thing(t), thing(t)
	s.Put("a", a)
	s.Settle(t.Context())
	s.Mute()
	s.Put("c", b)
	// A successor speaks meanwhile, and fails.
	ends := socketpair(t)
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	if err := s.Give(ends[0]); err != nil {
		t.Fatal(err)
	}
	g, err := fdstore.Receive(ends[1])
	if err != nil {
		t.Fatal(err)
	}
	other := fdstore.New(nil)
	other.Inherit(g.Items)
	other.Mute()
	if err := other.AttachSame(g.Link, g.Keeper); err != nil {
		t.Fatal(err)
	}
	other.Put("b", b)
	other.Unmute()
	other.Remove("a")
	other.Settle(t.Context())
	want(t, p, fdstore.Item{Name: "b", FD: b})
	other.Close()
	s.Restate()
	s.Settle(t.Context())
	want(t, p, fdstore.Item{Name: "a", FD: a}, fdstore.Item{Name: "c", FD: b})
	for _, it := range g.Items {
		_ = unix.Close(it.FD)
	}
}

func TestGive(t *testing.T) {
	nstest.Descriptors(t)
	s := fdstore.New(nil)
	var all []fdstore.Item
	for i := range 1000 {
		it := fdstore.Item{Name: fmt.Sprintf("w.%d", i), FD: thing(t)}
		all = append(all, it)
		s.Put(it.Name, it.FD)
	}
	ends := socketpair(t)
	gave := make(chan error, 1)
	go func() { gave <- s.Give(ends[0]) }()
	g, err := fdstore.Receive(ends[1])
	if err := errors.Join(err, <-gave); err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if diff := cmp.Diff(inodes(t, all...), inodes(t, g.Items...)); diff != "" {
		t.Errorf("received (-want +got):\n%s", diff)
	}
	if g.Link >= 0 || g.Keeper >= 0 {
		t.Errorf("there is no keeper, and one is given: %+v", g)
	}
	// Half of it is not lost where the rest does not come.
	if err := fdstore.GiveItems(ends[0], all[:2]); err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(ends[0])
	half, err := fdstore.Receive(ends[1])
	if !errors.Is(err, io.ErrUnexpectedEOF) || len(half.Items) != 2 {
		t.Errorf("%d items, %v", len(half.Items), err)
	}
	half.Close()
	_ = unix.Close(ends[1])
}

// Several descriptors of one message come under their names, in their order, among those that come one by one.
func TestSeveral(t *testing.T) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	var names []string
	var fds []int
	for i := range fdstore.MaxNames {
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pipe[0])
		defer unix.Close(pipe[1])
		names, fds = append(names, fmt.Sprintf("%032d", i)), append(fds, pipe[0])
	}
	var out fdpass.Sender
	for _, m := range []struct {
		text string
		fds  []int
	}{
		{"FDSTORE=1\nFDNAME=alone", fds[:1]},
		{fdstore.Several(names), fds},
		{fdstore.Several(names[:3]), fds[:2]}, // which is whose?
		{"READY=1", nil},
	} {
		if err := out.Send(ends[0], []byte(m.text), m.fds); err != nil {
			t.Fatal(err)
		}
	}
	g, err := fdstore.Receive(ends[1])
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if len(g.Items) != 1+len(names) || g.Items[0].Name != "alone" {
		t.Fatalf("%d items came: %v", len(g.Items), g.Items)
	}
	for i, it := range g.Items[1:] {
		if it.Name != names[i] || inode(t, it.FD) != inode(t, fds[i]) {
			t.Errorf("item %d is %s, of inode %d; want %s, of %d", i, it.Name, inode(t, it.FD), names[i], inode(t, fds[i]))
		}
	}
}

// A keeper that has died is replaced by one that gets all.
func TestKeeperDies(t *testing.T) {
	nstest.Descriptors(t)
	s, p := attached(t)
	defer s.Close()
	replaced := make(chan *peer, 1)
	next, q := pair(t)
	s.OnLost(func(error) {
		if err := s.Attach(next, -1); err != nil {
			t.Error(err)
		}
		replaced <- q
	})
	a, b := thing(t), thing(t)
	s.Put("a", a)
	_ = unix.Shutdown(p.conn, unix.SHUT_RDWR)
	s.Put("b", b) // finds out, or is found out of
	s.Remove("a")
	<-replaced
	s.Settle(t.Context())
	want(t, q, fdstore.Item{Name: "b", FD: b})
}

// Who gives another process a way to the keeper is told whether it is the one that was there before, and there at all.
func TestKeeper(t *testing.T) {
	nstest.Descriptors(t)
	is := func(s *fdstore.Store, n int, there bool) {
		t.Helper()
		if gotN, got := s.Keeper(); gotN != n || got != there {
			t.Errorf("keeper %d, there=%v; want %d, %v", gotN, got, n, there)
		}
	}
	is(nil, 0, false)
	s := fdstore.New(nil)
	is(s, 0, false)
	s, p := attached(t)
	defer s.Close()
	is(s, 1, true)
	if s.Managed() {
		t.Error("portd's own keeper is taken for a service manager")
	}
	replaced := make(chan error, 1)
	next, _ := pair(t)
	s.OnLost(func(error) { replaced <- s.Attach(next, -1) })
	s.Mute()
	_ = unix.Shutdown(p.conn, unix.SHUT_RDWR)
	for there := true; there; _, there = s.Keeper() { // its end of file is on its way
		runtime.Gosched()
	}
	is(s, 1, false) // who is muted replaces none
	s.Unmute()
	if err := <-replaced; err != nil {
		t.Fatal(err)
	}
	is(s, 2, true)
}

// A process that stops takes no other keeper, which would start it again.
func TestKeeperDiesOverStop(t *testing.T) {
	nstest.Descriptors(t)
	s, p := attached(t)
	defer s.Close()
	s.OnLost(func(error) { t.Error("another keeper is wanted") })
	s.Notify("STOPPING=1")
	_ = unix.Shutdown(p.conn, unix.SHUT_RDWR)
	<-p.ended
	next, q := pair(t)
	if err := s.Attach(next, -1); err == nil {
		t.Error("it has one")
	}
	<-q.ended
}

// A keeper that does not read is killed and replaced; nobody waits for it for much longer than two seconds.
func TestKeeperHangs(t *testing.T) {
	nstest.Descriptors(t)
	for _, how := range []string{"put", "settle"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			ends := socketpair(t)
			defer unix.Close(ends[1])
			keeper := exec.Command("sleep", "1000")
			if err := keeper.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = keeper.Process.Kill() }() // it is dead
			pidfd, err := unix.PidfdOpen(keeper.Process.Pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			s := fdstore.New(nil)
			if err := s.Attach(ends[0], pidfd); err != nil {
				t.Fatal(err)
			}
			next, q := pair(t)
			replaced := make(chan error, 1)
			s.OnLost(func(why error) {
				if err := s.Attach(next, -1); err != nil {
					t.Error(err)
				}
				replaced <- why
			})
			fd := thing(t)
			began := time.Now()
			for i := 0; how == "put" && time.Since(began) < 2*time.Second; i++ {
				s.Put(fmt.Sprint("s.", i%600), fd)
				s.Remove(fmt.Sprint("s.", i%600))
			}
			s.Settle(t.Context())
			if why := <-replaced; !errors.Is(why, os.ErrDeadlineExceeded) {
				t.Errorf("it was given up for %v", why)
			}
			if took := time.Since(began); took > 6*time.Second {
				t.Errorf("it took %v", took)
			}
			s.Put("new", fd)
			s.Settle(t.Context())
			want(t, q, fdstore.Item{Name: "new", FD: fd})
			var status *exec.ExitError
			if err := keeper.Wait(); !errors.As(err, &status) || status.ExitCode() != -1 {
				t.Errorf("the old keeper ended with %v", err)
			}
			s.Close()
		})
	}
}

// Words about processes carry their pidfds.
func TestSays(t *testing.T) {
	nstest.Descriptors(t)
	s, p := attached(t)
	s.Notify("READY=1\nSTATUS=all is well")
	if err := s.Successor(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	if err := s.MainPID(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	s.Binary("/usr/bin/portd")
	s.Settle(t.Context())
	if diff := cmp.Diff([]string{
		"READY=1\nSTATUS=all is well", fmt.Sprint("SUCCESSOR=", os.Getpid()), fmt.Sprint("MAINPID=", os.Getpid()), "BINARY=/usr/bin/portd",
	}, p.heard()); diff != "" {
		t.Error(diff)
	}
	if err := s.MainPID(1 << 30); err == nil {
		t.Error("a process that is not there is named")
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"FDSTORE=1\nFDNAME=s.1\nFDPOLL=0", "FDSTOREREMOVE=1\nFDNAME=g.1.2\n", "BARRIER=1", "READY=1\nSTATUS=x", "MAINPID=12", "MAINPID=-1",
		"SUCCESSOR=7", "RESET=1", "RESET=0", "BINARY=/bin/portd", "BINARY=portd", "UPGRADE=1", "KEEPER=1", "LINK=1", "FDNAME=a:b", "", "=", "FDSTORE=1",
		"FDSTORE=1\nFDNAMES=s.1:s.2", "FDNAMES=:", "FDSTOREREMOVE=1\nFDNAMES=a",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		w, err := fdstore.Parse(text)
		if err != nil {
			return
		}
		names := w.Names
		if w.Name != "" || w.Remove || len(names) == 0 {
			names = append(names, w.Name)
		}
		for _, name := range names {
			if (w.Store || w.Remove) && (name == "" || len(name) > 32) {
				t.Errorf("%q is taken with the name %q", text, name)
			}
		}
		if w.MainPID < 0 || w.Successor < 0 {
			t.Errorf("%q is taken with a pid of %d, %d", text, w.MainPID, w.Successor)
		}
		if w.Begin && w.End {
			t.Errorf("%q begins and ends", text)
		}
	})
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		"FDSTORE=1", "FDNAME=", "FDNAME=a b", "FDNAME=" + string(slices.Repeat([]byte("a"), 33)), "nonsense", "MAINPID=0", "MAINPID=x",
		"FDSTORE=1\nFDNAMES=", "FDSTORE=1\nFDNAMES=a:", "FDSTOREREMOVE=1\nFDNAMES=a", "MAINPID=99999999999", "BINARY=portd", "BINARY=/a\x00b", string(make([]byte, 5000)),
	} {
		if w, err := fdstore.Parse([]byte(text)); err == nil {
			t.Errorf("%q is taken: %+v", text, w)
		}
	}
}
