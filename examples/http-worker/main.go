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

// run serves until ctx ends.
func run(ctx context.Context, where string, direct bool) error {
	ln, err := listen(ctx, where, direct)
	if err != nil {
		return err
	}
	fmt.Printf("http-worker %d serves %s\n", os.Getpid(), where)
	srv := &http.Server{Handler: http.HandlerFunc(answer), ReadHeaderTimeout: 10 * time.Second}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		// Requests that are being served are answered; what waits for us goes to another worker.
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		stopped <- srv.Shutdown(grace)
	}()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

func listen(ctx context.Context, where string, direct bool) (net.Listener, error) {
	if direct {
		return net.Listen("tcp", where)
	}
	// client.Listen(ctx, where) is the same without a log.
	return client.ListenConfig{Log: slog.Default()}.Listen(ctx, where)
}

// answer says who serves and who asks: RemoteAddr is the client's own address, as there is nothing in between.
func answer(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%d %s\n", os.Getpid(), r.RemoteAddr)
}
