// Http-worker is a small HTTP server that shares its port with others of its kind, and keeps it when it dies or portd restarts.
//
// What makes it so is one line: client.Listen where net.Listen was. The rest is net/http as ever, and each connection is an
// ordinary one that comes from the client itself:
//
//	ln, err := client.Listen(ctx, "tcp/8080")
//	if err != nil {
//		return err
//	}
//	return http.Serve(ln, handler)
//
// Start it twice, and both serve:
//
//	portd &
//	http-worker tcp/8080 &
//	http-worker tcp/8080 &
//	curl localhost:8080
//
// The first one reserves the port and the second one joins it. To keep the port when neither runs, reserve it beforehand (portctl
// reserve tcp 8080 --name web) and name it: http-worker web. With --direct :8080 it binds a port by itself, as programs do that
// know nothing of portd, and is refused where portd holds the port.
//
// To restart without a gap, start the new one beside the old one, with another generation, and drain the old one:
//
//	PORTD_GENERATION=v2 http-worker web &
//	portctl drain web --except v2 --ready 1
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/portd/portd/client"
)

func main() {
	direct := flag.Bool("direct", false, "bind by oneself: the argument is an address such as :8080")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "usage: http-worker tcp/8080\n       http-worker --direct :8080\n")
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, flag.Arg(0), *direct); err != nil {
		fmt.Fprintf(os.Stderr, "http-worker: %v\n", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, or somebody drains this worker (portctl drain). Either way nobody is left without an answer: no more
// connections come, those that were on their way are taken, and all are served before it returns.
func run(ctx context.Context, where string, direct bool) error {
	ln, err := listen(ctx, where, direct)
	if err != nil {
		return err
	}
	fmt.Printf("http-worker %d serves %s\n", os.Getpid(), where)
	srv := &http.Server{Handler: http.HandlerFunc(answer), ReadHeaderTimeout: 10 * time.Second}
	unlessEnded := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		_ = ln.Drain(grace) // when it takes too long what waits for us goes to another worker
	})
	defer unlessEnded()
	if err := srv.Serve(ln); !errors.Is(err, net.ErrClosed) {
		return err
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	// Before Shutdown, which closes connections whose first request it has not read yet.
	srv.SetKeepAlivesEnabled(false)
	_ = ln.Wait(grace)
	return srv.Shutdown(grace)
}

// grace is how long connections may take to end.
const grace = 5 * time.Second

// A drainer is a listener that can be left without a loss.
type drainer interface {
	net.Listener
	Drain(ctx context.Context, wishes ...int) error
	Wait(ctx context.Context) error
}

func listen(ctx context.Context, where string, direct bool) (drainer, error) {
	if direct {
		ln, err := net.Listen("tcp", where)
		return bound{ln}, err
	}
	// client.Listen(ctx, where) is the same without a log.
	return client.ListenConfig{Log: slog.Default()}.Listen(ctx, where)
}

// A bound listener's port is its own: what waits there is reset when it closes.
type bound struct{ net.Listener }

func (b bound) Drain(context.Context, ...int) error { return b.Close() }
func (bound) Wait(context.Context) error            { return nil }

// answer says who serves and who asks: RemoteAddr is the client's own address, as there is nothing in between.
func answer(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%d %s\n", os.Getpid(), r.RemoteAddr)
}
