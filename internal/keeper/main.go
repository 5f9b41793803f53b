package keeper

import (
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdstore"
)

// What a process finds in its environment.
const (
	// EnvKeeper is the descriptor of the daemon's socket to its keeper, which first sends all that it keeps.
	EnvKeeper = "PORTD_KEEPER"

	// envPredecessor is package daemon's: another daemon has started this process, and gives it what it has.
	envPredecessor = "PORTD_PREDECESSOR"

	envRole   = "PORTD_ROLE"         // "keeper": the process is one
	envOf     = "PORTD_KEEPER_OF"    // pid of the daemon that has started it; its socket is descriptor 3, its pidfd 4
	envState  = "PORTD_KEEPER_STATE" // descriptor of what the keeper that became this one knew
	envBinary = "PORTD_BINARY"       // the daemon's file
	envLevel  = "PORTD_KEEPER_LOG"   // the daemon's log level; the daemon has it too, for the keepers that it starts
)

// A keeper is the same binary as the daemon. It runs before the packages of gRPC and protobuf are initialised, which take several times
// the memory that it needs itself: this package imports little, so that its turn comes before theirs.
func init() {
	if os.Getenv(envRole) == "keeper" {
		os.Exit(main())
	}
}

// main is the process.
func main() int {
	var level slog.Level
	_ = level.UnmarshalText([]byte(os.Getenv(envLevel))) // empty: info
	log, flush := Log(os.Stderr, level)
	defer flush()
	k := &keeper{
		log: log.With("part", "keeper"), items: make(map[string]int), conn: -1, main: process{pidfd: -1},
		predecessor: process{pidfd: -1}, successor: process{pidfd: -1}, late: process{pidfd: -1}, program: program{path: os.Getenv(envBinary), args: os.Args, image: -1},
	}
	k.listen()
	k.settleDown()
	k.manager = fdstore.New(k.log)
	if socket, _ := fdstore.Manager(); socket != "" {
		if err := k.manager.AttachManager(socket, 0); err != nil {
			k.log.Warn("the service manager cannot be told", "err", err)
		}
	}
	k.program.env = daemonEnv(os.Environ())
	if err := k.begin(); err != nil {
		k.log.Error("the keeper cannot begin", "err", err)
		return 1
	}
	return k.run()
}

// begin finds out what it is the keeper of: a daemon that runs, that of the keeper that it was before, or one to start.
func (k *keeper) begin() error {
	if state := os.Getenv(envState); state != "" {
		return k.takeUp(state)
	}
	if of := os.Getenv(envOf); of != "" {
		pid, err := strconv.Atoi(of)
		if err != nil || pid <= 0 {
			return errors.New(envOf + " is no pid")
		}
		unix.CloseOnExec(3)
		unix.CloseOnExec(4)
		k.conn, k.main = 3, process{pid: pid, pidfd: 4}
		k.ready, k.wasReady = true, true
		k.introduce()
		return nil
	}
	for _, it := range fdstore.FromManager() {
		if _, twice := k.items[it.Name]; twice {
			return errors.New("LISTEN_FDS has two sockets named " + it.Name)
		}
		k.items[it.Name] = it.FD
	}
	return k.startDaemon() // what cannot be started the first time is not tried again
}

// listen has each signal written to a pipe that the keeper waits for.
func (k *keeper) listen() {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		k.log.Error("the keeper hears no signals", "err", err)
		k.signals = -1 // poll(2) passes it over
		return
	}
	k.signals = ends[0]
	// A log that nobody reads is an error of the write and not the end of the keeper.
	signal.Ignore(unix.SIGPIPE, unix.SIGXFSZ)
	came := make(chan os.Signal, 16)
	signal.Notify(came, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR2)
	deaf(false) // which the keeper that was before it may have been when it became this one
	go func() {
		for sig := range came {
			if s, ok := sig.(unix.Signal); ok {
				_, _ = unix.Write(ends[1], []byte{byte(s)}) // EAGAIN: as many are waiting as it takes
			}
		}
	}()
}

// settleDown makes the process what orphans come to, and the last that the kernel ends for want of memory: it takes next to none,
// and much hangs on it.
func (k *keeper) settleDown() {
	_ = os.WriteFile("/proc/self/comm", []byte("portd-keeper"), 0)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		k.log.Warn("orphans of the daemon are not the keeper's", "err", err)
	}
	const file, score = "/proc/self/oom_score_adj", "-900"
	was, err := os.ReadFile(file)
	if err != nil || strings.TrimSpace(string(was)) == score {
		return
	}
	if os.WriteFile(file, []byte(score), 0) == nil { // lowering it takes CAP_SYS_RESOURCE
		k.program.oomScore = strings.TrimSpace(string(was))
	}
}

// daemonEnv is the environment without what is for the keeper.
func daemonEnv(env []string) []string {
	var all []string
	for _, e := range env {
		switch name, _, _ := strings.Cut(e, "="); name {
		case EnvKeeper, EnvNice, envPredecessor, envRole, envOf, envState, envBinary, "NOTIFY_SOCKET", "FDSTORE", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES":
		default:
			all = append(all, e)
		}
	}
	return all
}
