package rpc

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"

	"github.com/portd/portd/internal/registry"
	pb "github.com/portd/portd/proto/portd/v1"
)

// Backups copies portd's state out and in. What is wrong with a backup is a *registry.InvalidError, or ErrUnsupported where a newer
// portd wrote it.
type Backups interface {
	// Backup writes a backup, and returns what it is.
	Backup(ctx context.Context, w io.Writer) (registry.BackupInfo, error)
	// Check reads a backup to its end and says what it is.
	Check(ctx context.Context, from io.Reader) (registry.BackupInfo, error)
	// Restore checks a backup and puts another portd in the place of this one, which begins with it. After an error this one goes
	// on with the state that it has.
	Restore(ctx context.Context, from io.Reader) (Restored, error)
	// Spool is a file for so long, which has no name; the caller closes it.
	Spool() (*os.File, error)
}

// Restored is what became of a restore.
type Restored struct {
	Backup  registry.BackupInfo
	StoreID string // new
	Before  string // where the state from before is
}

type backups struct {
	pb.UnimplementedBackupServiceServer
	reg *registry.Registry
	is  Backups
}

// here refuses who may not, and everybody where there is nothing to copy.
func (s *backups) here(ctx context.Context, act string) error {
	if err := s.reg.Policy().CopyState(callerOf(ctx), act); err != nil {
		return err
	}
	if s.is == nil {
		return &registry.UnsupportedError{What: act, Why: "this portd keeps no state that could be copied"}
	}
	return nil
}

// Backup makes all of it first, in a file, since the store grows while somebody reads in it, and a caller may take his time.
func (s *backups) Backup(_ *pb.BackupRequest, to pb.BackupService_BackupServer) error {
	ctx := to.Context()
	if err := s.here(ctx, "copy the state"); err != nil {
		return err
	}
	file, err := s.is.Spool()
	if err != nil {
		return err
	}
	defer file.Close()
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(file, sum), backupChunk)
	info, err := s.is.Backup(ctx, out)
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return err
	}
	if err := to.Send(&pb.BackupResponse{Part: &pb.BackupResponse_Info{Info: fromBackup(info)}}); err != nil {
		return err
	}
	for at := int64(0); at < info.Size; {
		chunk := make([]byte, min(backupChunk, info.Size-at)) // gRPC may look at a message after it was sent
		if _, err := file.ReadAt(chunk, at); err != nil {
			return err
		}
		if err := to.Send(&pb.BackupResponse{Part: &pb.BackupResponse_Data{Data: chunk}}); err != nil {
			return err
		}
		at += int64(len(chunk))
	}
	return to.Send(&pb.BackupResponse{Part: &pb.BackupResponse_Sha256{Sha256: sum.Sum(nil)}})
}

// backupChunk is how much of a backup goes into one message, in bytes.
const backupChunk = 256 << 10

func (s *backups) Restore(from pb.BackupService_RestoreServer) error {
	ctx := from.Context()
	if err := s.here(ctx, "restore the state"); err != nil {
		return err
	}
	file := &backupUpload{from: from}
	opt, err := file.begin()
	if err != nil {
		return err
	}
	if opt.GetDryRun() {
		info, err := s.is.Check(ctx, file)
		if err != nil {
			return err
		}
		return from.SendAndClose(&pb.RestoreResponse{Backup: fromBackup(info), DryRun: true})
	}
	done, err := s.is.Restore(ctx, file)
	if err != nil {
		return err
	}
	return from.SendAndClose(&pb.RestoreResponse{Backup: fromBackup(done.Backup), StoreId: done.StoreID, Before: done.Before})
}

// A backupUpload is the file that a stream of requests brings, read as they come.
type backupUpload struct {
	from  pb.BackupService_RestoreServer
	chunk []byte // not read yet
}

// begin takes the options, which may come first; the first data stay to be read.
func (u *backupUpload) begin() (*pb.RestoreOptions, error) {
	req, err := u.from.Recv()
	switch {
	case errors.Is(err, io.EOF):
		return nil, invalid("data", "is missing; a backup of portd's is wanted")
	case err != nil:
		return nil, err
	}
	if opt, ok := req.GetPart().(*pb.RestoreRequest_Options); ok {
		return opt.Options, nil
	}
	return nil, u.take(req)
}

// Read reads on in the file. A stream that breaks off is an error here, and no end.
func (u *backupUpload) Read(p []byte) (int, error) {
	for len(u.chunk) == 0 {
		req, err := u.from.Recv()
		if err != nil {
			return 0, err // io.EOF where the caller has said that this is all
		}
		if err := u.take(req); err != nil {
			return 0, err
		}
	}
	n := copy(p, u.chunk)
	u.chunk = u.chunk[n:]
	return n, nil
}

func (u *backupUpload) take(req *pb.RestoreRequest) error {
	if _, ok := req.GetPart().(*pb.RestoreRequest_Options); ok {
		return invalid("options", "come once, before all data")
	}
	if u.chunk = req.GetData(); len(u.chunk) > maxChunk {
		return tooLarge("has %d bytes; at most %d come at a time", len(u.chunk), maxChunk)
	}
	return nil
}

func fromBackup(i registry.BackupInfo) *pb.BackupInfo {
	return &pb.BackupInfo{
		StoreId: i.StoreID, Revision: int64(i.Revision), OldestRevision: int64(i.Oldest), SchemaVersion: i.Schema,
		Size: i.Size, CreateTime: fromTime(i.Time), Reservations: i.Reservations,
	}
}
