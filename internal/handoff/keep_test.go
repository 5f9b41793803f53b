package handoff_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/handoff"
	"github.com/portd/portd/internal/registry"
)

// A dynasty is a keeper, as the test's own process, and one portd after the other, each a process with a Pool, of one listener.
type dynasty struct {
	*host
	t       testing.TB
	options registry.HandoffOptions
	holders bool     // each has one, and rescues what the one before had
	tcp     *os.File // the listening socket
	attach  *os.File
	addr    string

	mu    sync.Mutex
	items map[string]int
	reign *reign

	skip int // see Pool.SkipSlots
}

// A reign is one portd.
type reign struct {
	*exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	conn int           // the keeper's end of the socket between them
	kept chan struct{} // closed when the keeper has read all that it had to say
}

// An estate is what a portd says that it has.
type estate struct {
	Totals  handoff.Totals
	Sum     handoff.Totals
	Workers []handoff.Worker
	Doors   []string // how often they were turned, and which way
}

const dynastyID = "rsv_dynasty"

func newDynasty(t testing.TB, o registry.HandoffOptions) *dynasty {
	t.Helper()
	return begun(t, &dynasty{options: o})
}

func begun(t testing.TB, d *dynasty) *dynasty {
	t.Helper()
	d.t, d.items = t, make(map[string]int)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.addr = ln.Addr().String()
	dir, err := os.MkdirTemp("", "handoff")
	if err != nil {
		t.Fatal(err)
	}
	d.host = &host{t: t, socket: dir + "/s"}
	attach, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: d.socket})
	if err != nil {
		t.Fatal(err)
	}
	d.tcp, d.attach = inheritable(t, ln.(*net.TCPListener)), inheritable(t, attach)
	ln.Close()
	t.Cleanup(func() {
		d.end()
		d.tcp.Close()
		d.attach.Close()
		attach.Close()
		os.RemoveAll(dir)
		for _, fd := range d.items {
			unix.Close(fd)
		}
	})
	d.begin()
	return d
}

// inheritable is a file that processes can be started with, which leaves O_NONBLOCK as it is: what the file is of, they have in common.
func inheritable(t testing.TB, l interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0) // blocking, so that os.File does not care
	if err != nil {
		t.Fatal(err)
	}
	own := os.NewFile(uintptr(fd), f.Name())
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	return own
}

// begin starts the next portd with what the keeper has.
func (d *dynasty) begin(env ...string) {
	d.t.Helper()
	r := d.start(env...)
	go d.keep(r.conn, r.kept)
	r.says(d.t, "ready")
	d.reign = r
}

// prepare starts a portd that is to succeed one that is there, and returns when it has restored the workers. They are not its own yet.
func (d *dynasty) prepare() *reign {
	d.t.Helper()
	workers := len(d.reign.ask(d.t).Workers)
	until(d.t, "the keeper has read what it was told", func() bool { return d.names("w.") >= workers })
	r := d.start(envUpgrade + "=1")
	r.says(d.t, "prepared")
	return r
}

// enthrone has r take over, with the connections that the one before has given the keeper.
func (d *dynasty) enthrone(r *reign) {
	d.t.Helper()
	d.give(r, true)
	go d.keep(r.conn, r.kept)
	r.says(d.t, "ready")
	d.reign = r
}

// give gives r the connections that the keeper has, which it keeps no more, or all else.
func (d *dynasty) give(r *reign, connections bool) {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	var some []fdstore.Item
	for name, fd := range d.items {
		if strings.HasPrefix(name, "c.") == connections {
			some = append(some, fdstore.Item{Name: name, FD: fd})
		}
	}
	err := fdstore.GiveItems(r.conn, some)
	if err == nil {
		err = fdstore.GiveEnd(r.conn)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	for _, it := range some {
		if connections {
			unix.Close(it.FD)
			delete(d.items, it.Name)
		}
	}
}

// does tells r to do something, and returns when it has.
func (r *reign) does(t testing.TB, what string) {
	t.Helper()
	if _, err := io.WriteString(r.in, what+"\n"); err != nil {
		t.Fatal(err)
	}
	r.says(t, "done")
}

func (r *reign) says(t testing.TB, what string) {
	t.Helper()
	if line, err := r.out.ReadString('\n'); line != what+"\n" {
		t.Fatalf("portd says %q, want %q: %v", line, what, err)
	}
}

// envUpgrade is set for a portd that succeeds one that lives.
const envUpgrade = "HANDOFF_UPGRADE"

// start starts a portd with what the keeper has.
func (d *dynasty) start(env ...string) *reign {
	d.t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(ends[1]), "keeper")
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe")
	options, _ := json.Marshal(d.options)
	cmd.Env = append(os.Environ(), envAct+"=heir", "HANDOFF_OPTIONS="+string(options), "HANDOFF_SKIP="+strconv.Itoa(d.skip))
	cmd.Env = append(cmd.Env, env...)
	if d.holders {
		cmd.Env = append(cmd.Env, "HANDOFF_HOLDER=1")
	}
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs, d.attach, d.tcp}
	r := &reign{Cmd: cmd, conn: ends[0], kept: make(chan struct{})}
	if r.in, err = cmd.StdinPipe(); err != nil {
		d.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	r.out = bufio.NewReader(stdout)
	d.give(r, false)
	return r
}

// keep does what a portd says, until that is gone.
func (d *dynasty) keep(conn int, done chan struct{}) {
	defer close(done)
	var in fdpass.Receiver
	buf := make([]byte, 8192)
	for {
		n, fds, err := in.Recv(conn, buf)
		if errors.Is(err, unix.EAGAIN) {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(conn), Events: unix.POLLIN}}, -1)
			continue
		}
		if err != nil {
			return
		}
		words, err := fdstore.Parse(buf[:n])
		if err != nil {
			d.t.Error(err)
		}
		d.mu.Lock()
		if old, there := d.items[words.Name]; there && (words.Store || words.Remove) {
			unix.Close(old)
			delete(d.items, words.Name)
		}
		if words.Store {
			d.items[words.Name] = fds[0]
			fds = fds[1:]
		}
		d.mu.Unlock()
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}

// kill ends the portd that there is, whatever it is doing.
func (d *dynasty) kill() {
	_ = d.reign.Process.Kill()
	d.end()
}

// end returns when it has ended, and the keeper knows all that it had said.
func (d *dynasty) end() {
	if d.reign != nil {
		d.reign.end()
		d.reign = nil
	}
}

func (r *reign) end() {
	_ = r.in.Close()
	_ = r.Wait()
	_ = r.Process.Release()                 // who traced it may have waited for it
	_ = unix.Shutdown(r.conn, unix.SHUT_RD) // a holder may have the other end
	<-r.kept
	_ = unix.Close(r.conn)
}

// ask has a portd say what it has.
func (r *reign) ask(t testing.TB) (e estate) {
	t.Helper()
	if _, err := io.WriteString(r.in, "tell\n"); err != nil {
		t.Fatal(err)
	}
	line, err := r.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &e)
	}
	if err != nil {
		t.Fatalf("portd says %q: %v", line, err)
	}
	return e
}

// names are those of what the keeper has.
func (d *dynasty) names(prefix string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.items {
		if len(name) >= len(prefix) && name[:len(prefix)] == prefix {
			n++
		}
	}
	return n
}

// serveHeir is a portd with a keeper at descriptor 3: a Pool, its attach socket, and one listener.
func serveHeir() error {
	given, err := fdstore.Receive(3)
	if err != nil {
		return err
	}
	log := slog.DiscardHandler
	if os.Getenv("HANDOFF_LOG") != "" {
		log = slog.NewTextHandler(os.Stderr, nil)
	}
	store := fdstore.New(slog.New(log))
	store.Inherit(given.Items)
	upgrade := os.Getenv(envUpgrade) != ""
	items, mine := given.Items, 0
	if !upgrade {
		if err := store.Attach(3, -1); err != nil {
			return err
		}
		if items, mine, err = rescued(store, given.Items, slog.New(log)); err != nil {
			return err
		}
	}
	pool, ln, err := heirs(store, slog.New(log))
	if err != nil {
		return err
	}
	pool.Holder(mine)
	if err := pool.Restore(items); err != nil && upgrade {
		return err
	}
	if upgrade {
		fmt.Println("prepared")
		if given, err = fdstore.Receive(3); err != nil {
			return err
		}
		if err := pool.Restore(given.Items); err != nil {
			return err
		}
		if err := store.Attach(3, -1); err != nil {
			return err
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var running sync.WaitGroup
	running.Go(func() { _ = pool.Run(ctx) })
	running.Go(func() { _ = pool.Serve(ctx, ln) })
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		switch lines.Text() {
		case "tell":
			_ = json.NewEncoder(os.Stdout).Encode(estate{pool.Totals(dynastyKey), pool.Sum(), pool.Workers(), turned()})
		case "suspend":
			items, err := pool.Suspend(ctx)
			if err != nil {
				return err
			}
			for _, it := range items {
				store.Put(it.Name, it.FD)
			}
			store.Settle(ctx)
			fmt.Println("done")
		case "resume":
			for _, it := range store.Items() {
				if strings.HasPrefix(it.Name, "c.") {
					store.Remove(it.Name)
				}
			}
			store.Settle(ctx)
			pool.Resume()
			fmt.Println("done")
		case "abandon":
			pool.Abandon()
			fmt.Println("done")
		case "threads":
			_ = json.NewEncoder(os.Stdout).Encode(pool.Threads(dynastyKey))
		case "crowd", "relax":
			pool.Crowd(lines.Text() == "crowd")
			fmt.Println("done")
		case "release":
			pool.Released(dynastyID, "released")
			fmt.Println("done")
		}
	}
	stop()
	running.Wait()
	return nil
}

var dynastyKey = registry.SocketKey{Reservation: dynastyID}

// heirs is a Pool on the descriptors that a portd in a dynasty has.
func heirs(store *fdstore.Store, log *slog.Logger) (*handoff.Pool, *net.UnixListener, error) {
	file := os.NewFile(4, "attach")
	l, err := net.FileListener(file)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(5, true); err != nil {
		return nil, nil, err
	}
	sa, err := unix.Getsockname(5)
	if err != nil {
		return nil, nil, err
	}
	port := uint16(sa.(*unix.SockaddrInet4).Port)
	e := registry.Endpoint{Netns: registry.HostNetns, Proto: registry.TCP, Addr: netip.MustParseAddr("127.0.0.1"), First: port, Last: port}
	var o registry.ListenOptions
	if err := json.Unmarshal([]byte(os.Getenv("HANDOFF_OPTIONS")), &o.Handoff); err != nil {
		return nil, nil, err
	}
	res := &registry.Reservation{ID: dynastyID, Owner: registry.UIDPrincipal(uint32(os.Getuid())), Assigned: []registry.Assigned{{Endpoint: e, Listen: &o}}}
	var attacher handoff.Attacher = everybody{res}
	if os.Getenv("HANDOFF_RELEASED") != "" {
		attacher = nobody{}
	}
	pool, err := handoff.New(handoff.Config{Attacher: attacher, Keep: store, Log: log, Doors: doors, Acceptors: acceptors()})
	if err != nil {
		return nil, nil, err
	}
	if skip, err := strconv.Atoi(os.Getenv("HANDOFF_SKIP")); err == nil {
		pool.SkipSlots(skip)
	}
	if os.Getenv("HANDOFF_RELEASED") == "" {
		pool.Listening(dynastyKey, []registry.Socket{{Endpoint: e, FD: 5}}, o)
	}
	return pool, l.(*net.UnixListener), nil
}

// nobody is a policy: all reservations are gone.
type nobody struct{}

func (nobody) Attach(context.Context, registry.Caller, string) (*registry.Reservation, error) {
	return nil, registry.ErrNotFound
}

// doors are those of a portd in a dynasty, which has one listener. They only note what becomes of them.
var (
	doors  handoff.Doorkeeper = noted{}
	turns  []string
	turnMu sync.Mutex
)

type noted struct{}

func (noted) turn(way string) error {
	turnMu.Lock()
	defer turnMu.Unlock()
	turns = append(turns, way)
	return nil
}

func (n noted) Admit(registry.SocketKey) error         { return n.turn("admit") }
func (n noted) Refuse(registry.SocketKey) (int, error) { return 0, n.turn("refuse") }
func (n noted) Park(registry.SocketKey) error          { return n.turn("park") }

func turned() []string {
	turnMu.Lock()
	defer turnMu.Unlock()
	return slices.Clone(turns)
}
