package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The programs that the scripts run.

// serveMain is a server that knows nothing of portd: it takes its sockets as systemd gives them and answers with its
// arguments. "exit N" from a client ends it with that code, "die N" by that signal; SIGTERM ends it with 0.
func serveMain() {
	if pid := os.Getenv("LISTEN_PID"); pid != strconv.Itoa(os.Getpid()) {
		fail("LISTEN_PID is %s, not %d", pid, os.Getpid())
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n == 0 {
		fail("LISTEN_FDS: %v", err)
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGINT)
	text := strings.Join(os.Args[1:], " ")
	for i := range n {
		// A socket says itself whether it listens (sd_is_socket(3)).
		listens, err := unix.GetsockoptInt(3+i, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err != nil {
			fail("descriptor %d: %v", 3+i, err)
		}
		f := os.NewFile(uintptr(3+i), "")
		if listens == 1 {
			ln, err := net.FileListener(f)
			if err != nil {
				fail("%v", err)
			}
			go serveStream(ln, text)
		} else {
			pc, err := net.FilePacketConn(f)
			if err != nil {
				fail("%v", err)
			}
			go servePackets(pc, text)
		}
	}
	fmt.Printf("serving on %d: %s\n", n, os.Getenv("LISTEN_FDNAMES"))
	for sig := range term {
		fmt.Println("got", sig)
		if sig == unix.SIGTERM {
			return
		}
	}
}

func serveStream(ln net.Listener, text string) {
	for {
		c, err := ln.Accept()
		if err != nil {
			fail("%v", err)
		}
		go func() {
			defer c.Close()
			obey(c, text)
		}()
	}
}

// obey answers a client, who says one line, unless that is what to do.
func obey(c net.Conn, text string) {
	buf := make([]byte, 100)
	n, _ := c.Read(buf)
	what, arg, _ := strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
	number, _ := strconv.Atoi(arg)
	switch what {
	case "exit":
		os.Exit(number)
	case "die":
		_ = unix.Kill(os.Getpid(), syscall.Signal(number))
	case "stay": // for as long as the client does
		_, _ = io.Copy(io.Discard, c)
	default:
		fmt.Fprintf(c, "%s\n", text)
	}
}

func servePackets(pc net.PacketConn, text string) {
	buf := make([]byte, 2000)
	for {
		_, from, err := pc.ReadFrom(buf)
		if err != nil {
			fail("%v", err)
		}
		_, _ = pc.WriteTo([]byte(text+"\n"), from)
	}
}

// dialMain is a client: "dial tcp ADDR WORDS…" says words and prints the answer, with -v also that it is connected.
func dialMain() {
	args := os.Args[1:]
	verbose := args[0] == "-v"
	if verbose {
		args = args[1:]
	}
	network, addr, words := args[0], args[1], args[2:]
	c, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		fail("%v", err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if verbose {
		fmt.Println("connected")
	}
	fmt.Fprintln(c, strings.Join(words, " "))
	if network == "udp" {
		buf := make([]byte, 2000)
		n, err := c.Read(buf)
		if err != nil {
			fail("%v", err)
		}
		fmt.Print(string(buf[:n]))
		return
	}
	_, err = io.Copy(os.Stdout, c)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		fail("%v", err)
	}
}

// strangerMain is a program that binds its port itself: "stranger tcp ADDR" has it until it is told to end.
func strangerMain() {
	network, addr := os.Args[1], os.Args[2]
	var err error
	if network == "udp" {
		_, err = net.ListenPacket(network, addr)
	} else {
		_, err = net.Listen(network, addr)
	}
	if err != nil {
		fail("%v", err)
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	fmt.Println("has", addr)
	<-term
}

// muteMain is called portd, has its socket and lock, and never says anything.
func muteMain() {
	_ = os.WriteFile("/proc/self/comm", []byte("portd"), 0)
	socket := os.Getenv("PORTD_SOCKET")
	_ = os.Remove(socket)
	_, err := net.Listen("unix", socket)
	if err == nil {
		err = os.WriteFile(filepath.Join(filepath.Dir(socket), "lock"), fmt.Appendln(nil, os.Getpid()), 0o600)
	}
	if err != nil {
		fail("%v", err)
	}
	fmt.Println("mute")
	select {}
}

// asMain runs portctl as another user: "as 1000 portctl list". It starts itself, for the file is where that user may not be.
func asMain() {
	uid, err := strconv.Atoi(os.Args[1])
	if err == nil {
		err = syscall.Setgroups(nil)
	}
	if err == nil {
		err = syscall.Setgid(uid)
	}
	if err == nil {
		err = syscall.Setuid(uid)
	}
	if err == nil {
		err = syscall.Exec("/proc/self/exe", os.Args[2:], os.Environ())
	}
	fail("as: %v", err)
}

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}
