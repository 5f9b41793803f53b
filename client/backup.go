package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	pb "github.com/portd/portd/proto/portd/v1"
)

// Backup writes all that portd has recorded to w, and returns what it is. What w has is a whole backup only where there is no
// error. It is for root and the user that portd runs as.
func (c *Client) Backup(ctx context.Context, w io.Writer) (*pb.BackupInfo, error) {
	ctx, cancel := context.WithCancel(ctx) // ends the stream where it is not read to its end
	defer cancel()
	stream, err := c.Backups.Backup(ctx, &pb.BackupRequest{})
	if err != nil {
		return nil, err
	}
	var info *pb.BackupInfo
	sum, size := sha256.New(), int64(0)
	for {
		part, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil, errors.New("portd has ended the backup before its end")
		case err != nil:
			return nil, err
		case part.GetInfo() != nil:
			info = part.GetInfo()
		case part.GetSha256() != nil:
			if info == nil || size != info.GetSize() || !bytes.Equal(part.GetSha256(), sum.Sum(nil)) {
				return nil, fmt.Errorf("what has come of the backup is not what portd has sent: %d bytes", size)
			}
			return info, nil
		default:
			sum.Write(part.GetData())
			size += int64(len(part.GetData()))
			if _, err := w.Write(part.GetData()); err != nil {
				return nil, fmt.Errorf("write the backup: %w", err)
			}
		}
	}
}

// Restore puts the backup that it reads from file in the place of portd's state; with DryRun it is read and checked, and nothing
// changes. After the answer portd starts anew. file stays the caller's to close; an error of file is wrapped, and nothing is
// changed then. opt may be nil. It is for root and the user that portd runs as.
func (c *Client) Restore(ctx context.Context, file io.Reader, opt *pb.RestoreOptions) (*pb.RestoreResponse, error) {
	ctx, cancel := context.WithCancel(ctx) // ends the stream where it is not sent to its end
	defer cancel()
	stream, err := c.Backups.Restore(ctx)
	if err != nil {
		return nil, err
	}
	if opt == nil {
		opt = &pb.RestoreOptions{}
	}
	err = stream.Send(&pb.RestoreRequest{Part: &pb.RestoreRequest_Options{Options: opt}})
	for err == nil {
		buf := make([]byte, importChunk) // gRPC may look at a message after it was sent
		n, readErr := fill(file, buf)
		if readErr != nil && readErr != io.EOF {
			return nil, fmt.Errorf("read the backup: %w", readErr)
		}
		if n > 0 {
			err = stream.Send(&pb.RestoreRequest{Part: &pb.RestoreRequest_Data{Data: buf[:n]}})
		}
		if readErr != nil {
			break
		}
	}
	if err != nil && !errors.Is(err, io.EOF) { // which means that portd has answered already
		return nil, err
	}
	return stream.CloseAndRecv()
}
