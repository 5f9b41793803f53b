package client_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"github.com/portd/portd/internal/nstest"
)

// envListen makes the test binary listen on this unix socket until its input ends.
const envListen = "CLIENT_TEST_LISTEN"

type actor struct{ *testing.M }

func TestMain(m *testing.M) { nstest.Main(actor{m}) }

func (a actor) Run() int {
	path := os.Getenv(envListen)
	if path == "" {
		return a.M.Run()
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer ln.Close()
	fmt.Println("listening")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}
