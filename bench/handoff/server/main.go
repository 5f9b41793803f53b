// Server is what the benchmark serves with: an echo or an HTTP server, on a listening socket of its own or as a worker of portd's.
//
//	server echo|http                     on a port of its own, which it prints
//	server echo|http SOCKET REFERENCE    as a worker, over portd's hand-off socket
//	server many SOCKET REFERENCE COUNT   attaches so many workers, says how long that took, and serves nothing
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/portd/portd/client"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var ln net.Listener
	var err error
	switch len(args) {
	case 1:
		ln, err = net.Listen("tcp", "127.0.0.1:0")
	case 3:
		wish := client.Wish{Reference: args[2]}
		ln, err = client.Join(context.Background(), client.AttachConfig{Socket: args[1], Wishes: []client.Wish{wish}}, nil)
	case 4:
		return many(args[1], args[2], args[3])
	default:
		return fmt.Errorf("see the package comment")
	}
	if err != nil {
		return err
	}
	fmt.Println("ready", ln.Addr().(*net.TCPAddr).Port)
	if args[0] == "http" {
		return http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello\n") }))
	}
	return echo(ln)
}

// echo sends 64 bytes back to each.
func echo(ln net.Listener) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			var buf [64]byte
			if n, err := c.Read(buf[:]); err == nil {
				_, _ = c.Write(buf[:n])
			}
		}()
	}
}

// many attaches workers until there are enough, or portd refuses.
func many(socket, reference, count string) error {
	want, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	start := time.Now()
	attached := make([]*client.Attachment, 0, want)
	for range want {
		a, err := client.Attach(context.Background(), client.AttachConfig{
			Socket: socket, Wishes: []client.Wish{{Reference: reference}},
		})
		if err != nil {
			fmt.Printf("attached %d %d %v\n", len(attached), time.Since(start).Milliseconds(), err)
			break
		}
		attached = append(attached, a)
	}
	if len(attached) == want {
		fmt.Printf("attached %d %d\n", want, time.Since(start).Milliseconds())
	}
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the benchmark has seen enough
	for _, a := range attached {
		_ = a.Close()
	}
	return nil
}
