package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/keeper"
)

// An origin is what a daemon begins with: what was kept of one before it, and who keeps things from now on. A first start, a start
// after a death, under a service manager or in the place of another daemon differ in nothing but who gave the items.
type origin struct {
	keep  *fdstore.Store
	items []fdstore.Item // that nobody has taken yet
	line  *line          // to the daemon whose place this one takes; nil where there is none
	log   *slog.Logger
}

// begin receives what there is. A predecessor is told hello first, with this one's version.
func begin(l *line, version string, log *slog.Logger) (_ *origin, err error) {
	o := &origin{line: l, log: log}
	if l == nil {
		o.keep, o.items, err = keeper.Connect(log)
		if err != nil {
			return nil, fmt.Errorf("keeper: %w", err)
		}
		return o, nil
	}
	if err := l.say("HELLO=1", "PROTOCOL="+protocol, "VERSION="+version); err != nil {
		return nil, err
	}
	if o.keep, o.items, err = keeper.Succeed(l.fd, log); err != nil {
		return nil, fmt.Errorf("take over: %w", err)
	}
	return o, nil
}

// take is the item of that name, if there is one; it is the caller's.
func (o *origin) take(name string) (fd int, ok bool) {
	some := o.takeAll(func(n string) bool { return n == name })
	if len(some) == 0 {
		return -1, false
	}
	return some[0].FD, true
}

// takeAll are the items that which selects by their names. They are the caller's.
func (o *origin) takeAll(which func(name string) bool) (some []fdstore.Item) {
	o.items = slices.DeleteFunc(o.items, func(it fdstore.Item) bool {
		if which(it.Name) {
			some = append(some, it)
			return true
		}
		return false
	})
	return some
}

// ofBinder and ofHandoff say whose an item is, by the first letter of its name.
func ofBinder(name string) bool { return kindIn(name, "slagb") }

func ofHandoff(name string) bool {
	return name == "ledger" || kindIn(name, "wc") || strings.HasPrefix(name, "holder.")
}

func kindIn(name, kinds string) bool {
	return len(name) > 2 && name[1] == '.' && strings.IndexByte(kinds, name[0]) >= 0
}

// check refuses items that portd cannot have put there: somebody gave them who wants them to be served. What another release of portd may
// have put there is closed.
func (o *origin) check() error {
	var errs []error
	for _, it := range o.items {
		switch {
		case it.Name == "lock", it.Name == "control", it.Name == "handoff", it.Name == lifeName, ofBinder(it.Name), ofHandoff(it.Name):
		case len(it.Name) > 2 && it.Name[1] == '.':
			o.log.Warn("a descriptor that another release of portd has kept is closed", "name", it.Name)
			o.drop(it)
		default:
			errs = append(errs, fmt.Errorf("LISTEN_FDS has a socket named %q; portd knows control and handoff (FileDescriptorName= in the socket unit)", it.Name))
		}
	}
	for _, name := range []string{"control", "handoff"} {
		n := 0
		for _, it := range o.items {
			if it.Name == name {
				n++
			}
		}
		if n > 1 {
			errs = append(errs, fmt.Errorf("LISTEN_FDS has two sockets named %s", name))
		}
	}
	return errors.Join(errs...)
}

func (o *origin) drop(it fdstore.Item) {
	o.items = slices.DeleteFunc(slices.Clone(o.items), func(x fdstore.Item) bool { return x == it })
	o.keep.Remove(it.Name)
	_ = unix.Close(it.FD)
}

// close puts away what nobody took, and lets go of the keeper, which has what it has.
func (o *origin) close() {
	for _, it := range o.items {
		_ = unix.Close(it.FD)
	}
	o.items = nil
	o.keep.Close()
	if o.line != nil {
		o.line.close()
	}
}

// envPredecessor is the descriptor of the line to the daemon that has started this one.
const envPredecessor = "PORTD_PREDECESSOR"

// predecessor is the line to the daemon whose place this process is to take; nil where there is none.
func predecessor() (*line, error) {
	text := os.Getenv(envPredecessor)
	if text == "" {
		return nil, nil
	}
	_ = os.Unsetenv(envPredecessor)
	var fd int
	if _, err := fmt.Sscan(text, &fd); err != nil {
		return nil, fmt.Errorf("%s is %q, which is no descriptor", envPredecessor, text)
	}
	if typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || typ != unix.SOCK_SEQPACKET {
		return nil, fmt.Errorf("%s is %d, which is no line to another portd", envPredecessor, fd)
	}
	unix.CloseOnExec(fd)
	// It is the parent: when that dies this process does, until it has taken over.
	pidfd, err := unix.PidfdOpen(os.Getppid(), 0)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("watch the portd that has started this one: %w", err)
	}
	return &line{fd: fd, other: pidfd}, nil
}
