package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"github.com/portd/portd/client"
)

// A web server on port 8080: start it as often as you like, each takes its share, and when one is killed no client is refused.
func ExampleListen() {
	l, err := client.Listen(context.Background(), "tcp/8080")
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "hello", r.RemoteAddr) // the real client
	})))
}

// A server that leaves without a loss: when ctx ends, or when somebody drains it (portctl drain).
func ExampleListener_Drain() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ln, err := client.Listen(ctx, "tcp/8080")
	if err != nil {
		log.Fatal(err)
	}
	context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = ln.Drain(grace) // ends Serve
	})
	srv := &http.Server{}
	if err := srv.Serve(ln); !errors.Is(err, net.ErrClosed) {
		log.Fatal(err)
	}
	grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	srv.SetKeepAlivesEnabled(false)
	_ = ln.Wait(grace) // before Shutdown, which closes connections whose first request it has not read
	_ = srv.Shutdown(grace)
}
