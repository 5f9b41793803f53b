package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	pb "github.com/portd/portd/proto/portd/v1"
)

// importChunk is how much of a file goes into one message, in bytes; portd takes up to 1 MiB.
const importChunk = 256 << 10

// ImportServices puts the service registry that it reads from file, IANA's CSV or XML, in place of the one that answers, and says
// what changed. It reads to the end, unless portd refuses before; file stays the caller's to close. An error of
// file is wrapped, and nothing is changed then. opt may be nil.
func (c *Client) ImportServices(ctx context.Context, file io.Reader, opt *pb.ImportOptions) (*pb.ServiceImport, error) {
	ctx, cancel := context.WithCancel(ctx) // ends the stream where it is not sent to its end
	defer cancel()
	stream, err := c.Services.ImportServices(ctx)
	if err != nil {
		return nil, err
	}
	if opt == nil {
		opt = &pb.ImportOptions{}
	}
	err = stream.Send(&pb.ImportServicesRequest{Part: &pb.ImportServicesRequest_Options{Options: opt}})
	for err == nil {
		buf := make([]byte, importChunk) // gRPC may look at a message after it was sent
		n, readErr := fill(file, buf)
		if readErr != nil && readErr != io.EOF {
			return nil, fmt.Errorf("read the registry: %w", readErr)
		}
		if n > 0 {
			err = stream.Send(&pb.ImportServicesRequest{Part: &pb.ImportServicesRequest_Data{Data: buf[:n]}})
		}
		if readErr != nil {
			break
		}
	}
	if err != nil && !errors.Is(err, io.EOF) { // which means that portd has answered already
		return nil, err
	}
	resp, err := stream.CloseAndRecv()
	if err != nil {
		return nil, err
	}
	return resp.GetImport(), nil
}

// fill reads until buf is full or r has ended, and returns r's own error. io.ReadFull would say io.ErrUnexpectedEOF at the end of
// every file, which is also what one says that was cut off in its packing.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var more int
		more, err = r.Read(buf[n:])
		n += more
	}
	return n, err
}
