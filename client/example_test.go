package client_test

import (
	"context"
	"fmt"
	"log"
	"net/http"

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
