package keeper

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdstore"
)

// Wanted says whether this process is to Become a keeper: nobody keeps its descriptors yet. Where a service manager has an FD store for it
// (FDSTORE, from systemd 254 on), or a keeper or a predecessor has started it, it is not.
func Wanted() bool {
	_, most := fdstore.Manager()
	return os.Getenv(EnvKeeper) == "" && os.Getenv(envPredecessor) == "" && most == 0
}

// Become makes this process a keeper, which starts the program anew as its daemon, with the same arguments and environment. It returns only
// where that fails; the process is what it was then.
func Become(level slog.Level) error {
	path, err := file()
	if err != nil {
		return err
	}
	env := slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, envLevel+"=") })
	env = append(env, envRole+"=keeper", envBinary+"="+path, envLevel+"="+level.String())
	return fmt.Errorf("start the keeper: %w", syscall.Exec("/proc/self/exe", os.Args, env))
}

// file is the path that this program was started by: what is put there is started next time. A symbolic link stays one.
func file() (string, error) {
	real, err := os.Executable()
	if err != nil {
		return "", err
	}
	path, err := exec.LookPath(os.Args[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return real, nil
	}
	one, err1 := os.Stat(path)
	same, err2 := os.Stat("/proc/self/exe")
	if err1 != nil || err2 != nil || !os.SameFile(one, same) {
		return real, nil
	}
	return path, nil
}

// Connect is the daemon's Store with its keeper: portd's own (PORTD_KEEPER), the service manager (NOTIFY_SOCKET), or nobody. The items
// are what the keeper had, and the caller's; they are in the Store until it Removes them. A keeper that dies or hangs is
// replaced from now on, until the Store is closed.
//
// Connect changes the environment, so that no program which the daemon starts takes itself for the daemon.
func Connect(log *slog.Logger) (*fdstore.Store, []fdstore.Item, error) {
	s := fdstore.New(log)
	if text := os.Getenv(EnvKeeper); text != "" {
		items, err := connectOwn(s, text, log)
		return s, items, err
	}
	items := fdstore.FromManager()
	s.Inherit(items)
	attachManager(s, log)
	return s, items, nil
}

func connectOwn(s *fdstore.Store, text string, log *slog.Logger) ([]fdstore.Item, error) {
	_ = os.Unsetenv(EnvKeeper)
	conn, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("%s is %q, which is no descriptor", EnvKeeper, text)
	}
	if typ, err := unix.GetsockoptInt(conn, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || typ != unix.SOCK_SEQPACKET {
		return nil, fmt.Errorf("%s is %d, which is not a keeper's socket", EnvKeeper, conn)
	}
	unix.CloseOnExec(conn)
	g, err := fdstore.Receive(conn)
	s.Inherit(g.Items)
	s.OnLost((&starter{store: s, log: log}).replace)
	if err := s.AttachSame(conn, g.Keeper); err != nil {
		log.Warn("the keeper is gone already", "err", err)
	}
	if err != nil { // what has come is not lost with it
		log.Error("the keeper has not given everything; what is missing is made anew", "err", err, "items", len(g.Items))
		s.Restate() // what it still has would be in the way
	}
	return g.Items, nil
}

// Succeed is Connect for a process that takes the place of another one, which Gives it everything over conn, a SEQPACKET socket. The Store is
// muted: the keeper is the predecessor's until the caller Unmutes it.
func Succeed(conn int, log *slog.Logger) (*fdstore.Store, []fdstore.Item, error) {
	g, err := fdstore.Receive(conn)
	if err != nil {
		g.Close()
		return nil, nil, err
	}
	s := fdstore.New(log)
	s.OnLost((&starter{store: s, log: log}).replace)
	if err := s.Succeed(g); err != nil {
		log.Warn("the keeper is gone", "err", err)
	}
	if g.Link < 0 {
		attachManager(s, log)
	}
	return s, g.Items, nil
}

func attachManager(s *fdstore.Store, log *slog.Logger) {
	socket, most := fdstore.Manager()
	if socket == "" {
		return
	}
	if err := s.AttachManager(socket, most); err != nil {
		log.Warn("the service manager cannot be told", "err", err)
	}
}

// A starter gives a Store another keeper when it has lost the one it had.
type starter struct {
	store *fdstore.Store
	log   *slog.Logger

	mu    sync.Mutex // one keeper is started at a time
	last  time.Time
	quick int // how many in a row were lost soon after their start
}

// replace tries until there is one. A keeper that is lost while it is told everything has replace called again.
func (s *starter) replace(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log.Warn("the keeper is lost; another one is started", "reason", why)
	for {
		if time.Since(s.last) > 10*time.Second {
			s.quick = 0
		}
		time.Sleep(backOff(s.quick))
		s.quick++
		s.last = time.Now()
		conn, pid, pidfd, err := startKeeper()
		if err != nil {
			s.log.Error("no keeper can be started: what portd has would be lost if it died now", "err", err)
			continue
		}
		if err := s.store.Attach(conn, pidfd); err != nil {
			s.log.Warn("a keeper was lost as soon as it was started", "pid", pid, "err", err)
		} else {
			s.log.Info("there is a keeper again", "pid", pid)
		}
		return
	}
}

// startKeeper starts a keeper of this process, and returns the socket to it.
func startKeeper() (conn, pid, pidfd int, err error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, 0, -1, fmt.Errorf("socket for a keeper: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(ends[0])
		}
	}()
	theirs := os.NewFile(uintptr(ends[1]), "keeper")
	defer theirs.Close()
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return -1, 0, -1, fmt.Errorf("watch this process: %w", err)
	}
	own := os.NewFile(uintptr(self), "pidfd")
	defer own.Close()
	path, err := file()
	if err != nil {
		return -1, 0, -1, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = os.Args
	cmd.Env = append(daemonEnv(os.Environ()), envRole+"=keeper", envBinary+"="+path, envOf+"="+strconv.Itoa(os.Getpid()))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs, own}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return -1, 0, -1, fmt.Errorf("start a keeper: %w", err)
	}
	pidfd, err = unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		pidfd, err = -1, nil // it says itself, when it runs
	}
	go func() { _ = cmd.Wait() }() // its end is seen by its socket
	return ends[0], cmd.Process.Pid, pidfd, nil
}
