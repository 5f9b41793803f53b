package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"

	"github.com/portd/portd/client"
	"golang.org/x/sys/unix"
)

// workerMain is a worker: worker ENDPOINT GENERATION [late]. It answers with its generation, drains on SIGTERM, and ends when nothing more
// can come. A late one is ready on SIGUSR1.
func workerMain() {
	where, generation, late := os.Args[1], os.Args[2], len(os.Args) > 3
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGUSR1)
	l, err := client.ListenConfig{Generation: generation, NotReady: late}.Listen(context.Background(), where)
	if err != nil {
		fail("%v", err)
	}
	go func() {
		for sig := range signals {
			switch sig {
			case unix.SIGUSR1:
				if err := l.Ready(); err != nil {
					fail("ready: %v", err)
				}
			case unix.SIGTERM:
				if err := l.Drain(context.Background()); err != nil {
					fail("drain: %v", err)
				}
			}
		}
	}()
	fmt.Println("works")
	for {
		c, err := l.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				fail("accept: %v", err)
			}
			break
		}
		obey(c, generation)
		_ = c.Close()
	}
	if err := l.Wait(context.Background()); err != nil {
		fail("wait: %v", err)
	}
	fmt.Println("has drained")
}
