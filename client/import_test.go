package client_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/portd/portd/client"
	pb "github.com/portd/portd/proto/portd/v1"
)

func TestImportServices(t *testing.T) {
	c := newPortd(t).dial()
	this, err := os.ReadFile("../internal/ianadb/service-names-port-numbers.csv")
	if err != nil {
		t.Fatal(err)
	}
	same, err := c.ImportServices(t.Context(), bytes.NewReader(this), nil)
	if err != nil || !same.GetUnchanged() {
		t.Errorf("what portd has already: %v (%v)", same, err)
	}
	next := bytes.Replace(this, []byte(",8,tcp,Unassigned,"), []byte("newname,8,tcp,New,"), 1)
	broken := errors.New("the disk is broken")
	half := iotest.TimeoutReader(bytes.NewReader(next)) // its second read fails
	if _, err := c.ImportServices(t.Context(), half, nil); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("a file that cannot be read: %v", err)
	}
	if _, err := c.ImportServices(t.Context(), iotest.ErrReader(broken), nil); !errors.Is(err, broken) {
		t.Errorf("a file that cannot be read: %v", err)
	}
	cutOff := io.MultiReader(bytes.NewReader(next), iotest.ErrReader(io.ErrUnexpectedEOF)) // as gzip.Reader says it
	if _, err := c.ImportServices(t.Context(), cutOff, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that is cut off: %v", err)
	}
	_, err = c.ImportServices(t.Context(), strings.NewReader("<html>"+strings.Repeat("x", 20<<20)), nil)
	if !errors.Is(err, client.ErrInvalid) || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("an error page: %.200v", err)
	}
	did, err := c.ImportServices(t.Context(), iotest.OneByteReader(bytes.NewReader(next)), &pb.ImportOptions{From: "next.csv"})
	if err != nil || did.GetAdded() != 1 || did.GetAfter().GetFrom() != "next.csv" {
		t.Errorf("got %v (%v)", did, err)
	}
}
