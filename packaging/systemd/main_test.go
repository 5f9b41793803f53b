// Package systemd has the unit that runs portd under systemd, and tests it with a real one.
package systemd

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/client"
)

// envWorker makes this program a worker of that endpoint, in the machine.
const envWorker = "PORTD_TEST_WORKER"

func TestMain(m *testing.M) {
	if endpoint := os.Getenv(envWorker); endpoint != "" {
		if err := work(endpoint); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// work sends back what it gets, until it is told to stop.
func work(endpoint string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	ln, err := client.Listen(ctx, endpoint)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}
