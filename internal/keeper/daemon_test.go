package keeper_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/fdpass"
	"github.com/portd/portd/internal/fdstore"
	"github.com/portd/portd/internal/keeper"
)

// A fake is what stands for the daemon in these tests: it keeps its own listening socket, and what it is told to, and answers questions
// over that socket. Its environment says where, and how it is to behave.
type fake struct {
	store *fdstore.Store
	items []fdstore.Item
	dir   string

	mu   sync.Mutex
	open map[string]int
}

const (
	envAct = "KEEPER_TEST_ACT" // what the process is
	envDir = "KEEPER_TEST_DIR" // where it finds its things
	envPre = "KEEPER_TEST_PREDECESSOR"
)

// daemon is the process. Files in its directory make it misbehave: "exit" ends it with the code in it before it is ready, "late" afterwards,
// "dies" has it killed that many times before it is ready, "blind" once, when it has put something and read nothing of what it gets, "young" has
// it hear no signal, "deaf" has it hear that it is asked to stop, and go on.
func daemon() int {
	f := &fake{dir: os.Getenv(envDir), open: map[string]int{}}
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if _, young := f.says("young"); young {
		_ = os.WriteFile(filepath.Join(f.dir, "is young"), nil, 0o600)
		time.Sleep(time.Hour)
	}
	if n, dies := f.says("dies"); dies {
		_ = os.WriteFile(filepath.Join(f.dir, "dies"), []byte(strconv.Itoa(n-1)), 0o600)
		if n > 0 {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		}
	}
	if _, blind := f.says("blind"); blind {
		_ = os.Remove(filepath.Join(f.dir, "blind"))
		f.blind()
	}
	asked := make(chan os.Signal, 8)
	signal.Notify(asked, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR2)
	var err error
	if pre := os.Getenv(envPre); pre != "" {
		os.Unsetenv(envPre)
		conn, _ := strconv.Atoi(pre)
		f.store, f.items, err = keeper.Succeed(conn, log)
	} else {
		f.store, f.items, err = keeper.Connect(log)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 9
	}
	if code, ok := f.says("exit"); ok {
		return code
	}
	listen := -1
	for _, it := range f.items {
		f.open[it.Name] = it.FD
		if it.Name == "listen" {
			listen = it.FD
		}
	}
	if listen < 0 {
		if listen, err = bind(filepath.Join(f.dir, "sock")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 9
		}
	}
	f.store.Put("listen", listen)
	if os.Getenv(envAct) == "successor" {
		if err := f.store.MainPID(os.Getpid()); err != nil {
			return 9
		}
		f.store.Unmute()
	}
	f.store.Notify("READY=1")
	if code, ok := f.says("late"); ok {
		return code
	}
	file := os.NewFile(uintptr(listen), "listen")
	ln, err := net.FileListener(file)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 9
	}
	go f.serve(ln)
	for sig := range asked {
		if _, deaf := f.says("deaf"); deaf {
			_ = os.WriteFile(filepath.Join(f.dir, "heard"), []byte(sig.String()), 0o600)
			continue
		}
		switch sig {
		case unix.SIGTERM, unix.SIGINT:
			f.store.Notify("STOPPING=1")
			code, _ := f.says("fails to stop")
			return code
		default:
			_ = os.WriteFile(filepath.Join(f.dir, "heard"), []byte(sig.String()), 0o600)
		}
	}
	return 0
}

func bind(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = unix.Listen(fd, 100)
	}
	return fd, err
}

// blind puts something before it has read anything, and dies, while the keeper is stopped and hears of both at once.
func (f *fake) blind() {
	_ = unix.Kill(os.Getppid(), unix.SIGSTOP)
	for !stopped(os.Getppid()) {
		time.Sleep(time.Millisecond)
	}
	conn, _ := strconv.Atoi(os.Getenv(keeper.EnvKeeper))
	fd, err := unix.MemfdCreate("thing", unix.MFD_CLOEXEC)
	if err == nil {
		err = new(fdpass.Sender).Send(conn, []byte("FDSTORE=1\nFDNAME=x.blind"), []int{fd})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
}

// stopped says whether a process is, by a signal (proc_pid_stat(5)).
func stopped(pid int) bool {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return strings.Contains(string(text), ") T ")
}

func (f *fake) says(name string) (int, bool) {
	text, err := os.ReadFile(filepath.Join(f.dir, name))
	code, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return code, err == nil
}

func (f *fake) serve(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			lines := bufio.NewScanner(conn)
			for lines.Scan() {
				fmt.Fprintln(conn, f.answer(strings.Fields(lines.Text())))
			}
		}()
	}
}

func (f *fake) answer(words []string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch words[0] {
	case "pid":
		return strconv.Itoa(os.Getpid())
	case "put": // a number of things with this prefix
		n, _ := strconv.Atoi(words[2])
		for range n {
			fd, err := unix.MemfdCreate("thing", unix.MFD_CLOEXEC)
			if err != nil {
				return err.Error()
			}
			name := f.store.NextName(words[1])
			f.open[name] = fd
			f.store.Put(name, fd)
		}
		return "ok"
	case "holder":
		f.store.Put("holder.1", 0)
		return "ok"
	case "remove":
		f.store.Remove(words[1])
		_ = unix.Close(f.open[words[1]])
		delete(f.open, words[1])
		return "ok"
	case "settle":
		f.store.Settle(context.Background())
		return "ok"
	case "churn": // puts and removes as often as that
		n, _ := strconv.Atoi(words[1])
		for i := range n {
			name := f.store.NextName("c.")
			f.store.Put(name, 0)
			f.store.Remove(name)
			if i%100 == 0 {
				f.store.Settle(context.Background())
			}
		}
		f.store.Settle(context.Background())
		return "ok"
	case "items": // name and inode of each
		var all []string
		for _, it := range f.store.Items() {
			var st unix.Stat_t
			if err := unix.Fstat(it.FD, &st); err != nil {
				return err.Error()
			}
			all = append(all, fmt.Sprint(it.Name, "=", st.Ino))
		}
		return strings.Join(all, " ")
	case "kept":
		return strconv.FormatBool(f.store.Kept())
	case "orphan": // leaves a process behind that has no parent, and ends
		if err := exec.Command("sh", "-c", "sh -c 'exit 3' & sh -c 'exit 4' &").Run(); err != nil {
			return err.Error()
		}
		return "ok"
	case "upgrade-keeper":
		f.store.UpgradeKeeper(words[1])
		f.store.Settle(context.Background())
		return "ok"
	case "binary":
		f.store.Binary(words[1])
		f.store.Settle(context.Background())
		return "ok"
	case "succeed":
		return f.succeed()
	case "leave":
		f.store.Close()
		os.Exit(0)
	case "crash":
		code, _ := strconv.Atoi(words[1])
		os.Exit(code)
	}
	return "what?"
}

// succeed starts a successor and gives it everything; its pid.
func (f *fake) succeed() string {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err.Error()
	}
	defer unix.Close(ends[0])
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envPre+"=3", envAct+"=successor")
	cmd.Stderr = os.Stderr
	theirs := os.NewFile(uintptr(ends[1]), "successor")
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		return err.Error()
	}
	theirs.Close()
	go func() { _ = cmd.Wait() }()
	if err := f.store.Successor(cmd.Process.Pid); err != nil {
		return err.Error()
	}
	f.store.Mute()
	if err := f.store.Give(ends[0]); err != nil {
		return err.Error()
	}
	return strconv.Itoa(cmd.Process.Pid)
}
