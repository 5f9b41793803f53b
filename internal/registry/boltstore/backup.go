package boltstore

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore/storepb"
)

// A backup is all records and changes of a store as of one revision. It is not bbolt's file: what is read back comes from
// outside, and bbolt trusts what it maps. Integers are big-endian:
//
//	backupMagic; length of the header (4 bytes), CRC-32C of it (4), the header: storepb.Backup
//	ops as in a journal, none of which deletes: bucket by bucket in the order of backupBuckets, keys in ascending order
//	SHA-256 of all that (32)
const (
	backupMagic = "portd backup 1\n"
	backupKind  = "portd backup " // of any version

	maxHeader = 64 << 10 // bytes; a real one has a few hundred
)

// BackupInfo is what a backup says of itself.
type BackupInfo = registry.BackupInfo

func infoOf(h *storepb.Backup, headerLength int) BackupInfo {
	return BackupInfo{
		StoreID: h.GetStoreId(), Revision: registry.Revision(h.GetRevision()), Oldest: registry.Revision(h.GetOldest()),
		Schema: h.GetSchema(), Time: h.GetTime().AsTime(), Reservations: h.GetRecords()[string(bucketReservation)],
		Size: int64(len(backupMagic)+8+headerLength) + h.GetLength() + sha256.Size,
	}
}

// backupBuckets are what a backup of a schema has.
func backupBuckets(schema uint32) [][]byte { return append(bucketsOfRecords(schema), bucketEvent) }

// Backup writes a backup of everything that was answered before the call, and of no half of what was answered since. Others
// read and commit meanwhile; w should not keep it waiting, for the file grows until it returns. ErrDamaged where a record
// cannot be read: a backup is whole or it is none.
func (s *Store) Backup(ctx context.Context, w io.Writer) (info BackupInfo, err error) {
	err = s.view(func(v view) error {
		m, err := readMeta(v.tx)
		if err != nil {
			return err
		}
		schema, err := schemaOf(v.tx)
		if err != nil {
			return err
		}
		if err := wholeBuckets(ctx, v.tx, m, schema); err != nil {
			return err
		}
		h := &storepb.Backup{StoreId: m.GetStoreId(), Revision: int64(v.rev), Oldest: int64(v.oldest), Schema: closed(schema)}
		info, err = writeBackup(w, h, func(yield func(op) error) error { return v.each(ctx, schema, v.oldest, yield) })
		return err
	})
	return info, err
}

// writeBackup writes what each yields, twice the same, with a header of which survey fills in the rest.
func writeBackup(w io.Writer, h *storepb.Backup, each func(yield func(op) error) error) (info BackupInfo, err error) {
	if err := survey(h, each); err != nil {
		return info, err
	}
	raw, err := proto.Marshal(h)
	if err != nil {
		return info, err
	}
	info = infoOf(h, len(raw))
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 256<<10)
	head := binary.BigEndian.AppendUint32([]byte(backupMagic), uint32(len(raw)))
	head = binary.BigEndian.AppendUint32(head, crc32.Checksum(raw, castagnoli))
	if _, err := out.Write(append(head, raw...)); err != nil {
		return info, err
	}
	var b []byte
	if err := each(func(o op) error {
		b = appendOp(b[:0], o)
		_, err := out.Write(b)
		return err
	}); err != nil {
		return info, err
	}
	if err := out.Flush(); err != nil {
		return info, err
	}
	_, err = w.Write(sum.Sum(nil))
	return info, err
}

// survey counts what a backup is to have, and makes sure that all of it is there and whole.
func survey(h *storepb.Backup, each func(yield func(op) error) error) error {
	h.Time, h.Records = timestamppb.Now(), map[string]int64{}
	for _, name := range bucketsOfRecords(h.GetSchema()) {
		h.Records[string(name)] = 0
	}
	next := registry.Revision(h.GetOldest())
	err := each(func(o op) error {
		if err := checkSealed(o.key, o.value); err != nil {
			return fmt.Errorf("%s %q: %w", o.bucket, o.key, err)
		}
		h.Length += int64(o.size())
		if !bytes.Equal(o.bucket, bucketEvent) {
			h.Records[string(o.bucket)]++
			return nil
		}
		if !bytes.Equal(o.key, eventKey(next)) {
			return fmt.Errorf("%w: revision %d is missing", ErrDamaged, next)
		}
		next++
		return nil
	})
	if err == nil && next != registry.Revision(h.GetRevision())+1 {
		err = fmt.Errorf("%w: revision %d is missing", ErrDamaged, next)
	}
	return err
}

// wholeBuckets makes sure that no record of the file is missing, which bbolt would not notice.
func wholeBuckets(ctx context.Context, tx *bolt.Tx, m *storepb.Meta, schema uint32) error {
	for _, name := range bucketsOfRecords(schema) {
		b, n := tx.Bucket(name), int64(0)
		if b == nil {
			return fmt.Errorf("%w: it has no bucket %q", ErrDamaged, name)
		}
		c := b.Cursor()
		for k, _ := c.First(); k != nil && ctx.Err() == nil; k, _ = c.Next() {
			n++
		}
		if want := m.GetRecords()[string(name)]; n != want && ctx.Err() == nil {
			return fmt.Errorf("%w: of %d records of kind %s there are %d", ErrDamaged, want, name, n)
		}
	}
	return ctx.Err()
}

// each yields all that v has in the order of a backup, as ops that put it: records, and changes from oldest on. What it
// yields dies with the transaction.
func (v view) each(ctx context.Context, schema uint32, oldest registry.Revision, yield func(op) error) error {
	newer := lastOf(v.pending)
	for _, name := range backupBuckets(schema) {
		b := v.tx.Bucket(name)
		if b == nil {
			return fmt.Errorf("%w: it has no bucket %q", ErrDamaged, name)
		}
		from := []byte(nil)
		if bytes.Equal(name, bucketEvent) {
			from = eventKey(oldest)
		}
		put := func(k, value []byte) error {
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case value == nil || bytes.Compare(k, from) < 0:
				return nil
			}
			return yield(op{name, k, value})
		}
		ahead := newer[string(name)]
		c := b.Cursor()
		k, value := c.Seek(from)
		for k != nil || len(ahead) > 0 {
			if len(ahead) > 0 && (k == nil || bytes.Compare(ahead[0].key, k) <= 0) {
				if k != nil && bytes.Equal(ahead[0].key, k) {
					k, value = c.Next()
				}
				if err := put(ahead[0].key, ahead[0].value); err != nil {
					return err
				}
				ahead = ahead[1:]
				continue
			}
			if err := put(k, value); err != nil {
				return err
			}
			k, value = c.Next()
		}
	}
	return nil
}

// lastOf is the last op for each key of what is pending, by bucket, sorted by key.
func lastOf(pending []*batch) map[string][]op {
	last := map[string]map[string]op{}
	for _, b := range pending {
		for _, o := range b.ops {
			if last[string(o.bucket)] == nil {
				last[string(o.bucket)] = map[string]op{}
			}
			last[string(o.bucket)][string(o.key)] = o
		}
	}
	sorted := map[string][]op{}
	for bucket, ops := range last {
		for _, o := range ops {
			sorted[bucket] = append(sorted[bucket], o)
		}
		slices.SortFunc(sorted[bucket], func(a, b op) int { return cmp.Compare(string(a.key), string(b.key)) })
	}
	return sorted
}
