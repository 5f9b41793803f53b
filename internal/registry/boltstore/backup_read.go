package boltstore

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/portd/portd/internal/registry"
	"github.com/portd/portd/internal/registry/boltstore/storepb"
)

// CheckBackup reads a backup to its end and says what it is. ErrForeign where it is none, ErrDamaged where something is
// missing or changed, a *SchemaError where a newer portd wrote it; what from fails with otherwise.
func CheckBackup(ctx context.Context, from io.Reader) (BackupInfo, error) {
	in, err := openBackup(from)
	if err != nil {
		return BackupInfo{}, err
	}
	return in.info, in.each(ctx, func(op) error { return nil })
}

// A backupReader reads a backup, of which it has the header.
type backupReader struct {
	info   BackupInfo
	header *storepb.Backup
	in     *bufio.Reader
	sum    hash.Hash
	read   int64 // bytes of records
	b      []byte
}

func openBackup(from io.Reader) (*backupReader, error) {
	r := &backupReader{in: bufio.NewReaderSize(from, 256<<10), sum: sha256.New()}
	magic := make([]byte, len(backupMagic))
	if n, err := io.ReadFull(r.in, magic); err != nil && !short(err) {
		return nil, err
	} else if err != nil || string(magic) != backupMagic {
		return nil, notABackup(magic[:n])
	}
	r.sum.Write(magic)
	var lengths [8]byte
	if err := r.full(lengths[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(lengths[:])
	if length > maxHeader {
		return nil, fmt.Errorf("%w: its header has %d bytes", ErrDamaged, length)
	}
	raw := make([]byte, length)
	if err := r.full(raw); err != nil {
		return nil, err
	}
	if crc32.Checksum(raw, castagnoli) != binary.BigEndian.Uint32(lengths[4:]) {
		return nil, fmt.Errorf("%w: its header has the wrong checksum", ErrDamaged)
	}
	h := &storepb.Backup{}
	if err := proto.Unmarshal(raw, h); err != nil {
		return nil, fmt.Errorf("%w: its header: %w", ErrDamaged, err)
	}
	r.info, r.header = infoOf(h, len(raw)), h
	switch reads := newest(migrations); {
	case h.GetSchema() > reads:
		return nil, &SchemaError{Have: h.GetSchema(), Reads: reads}
	case h.GetSchema() == 0 || h.GetLength() < 0 || h.GetRevision() < 0 || h.GetOldest() < 1 || h.GetOldest() > h.GetRevision()+1:
		return nil, fmt.Errorf("%w: its header says what cannot be", ErrDamaged)
	}
	return r, nil
}

// notABackup says what begins in such a way, where that is known.
func notABackup(begin []byte) error {
	switch {
	case len(begin) == 0:
		return fmt.Errorf("%w: it is empty", ErrForeign)
	case bytes.HasPrefix(begin, []byte(backupKind)):
		return fmt.Errorf("%w: a newer portd wrote this backup: use that one", ErrForeign)
	case bytes.HasPrefix([]byte(backupMagic), begin):
		return fmt.Errorf("%w: it is cut off after %d bytes", ErrDamaged, len(begin))
	case bytes.HasPrefix(begin, []byte(journalMagic)[:min(len(journalMagic), len(begin))]):
		return fmt.Errorf("%w: it is a journal of portd's, and no backup", ErrForeign)
	}
	return fmt.Errorf("%w: it is no backup of portd's", ErrForeign)
}

func short(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// full reads all of b, which counts for the checksum.
func (r *backupReader) full(b []byte) error {
	if _, err := io.ReadFull(r.in, b); short(err) {
		return r.cut()
	} else if err != nil {
		return err
	}
	r.sum.Write(b)
	return nil
}

func (r *backupReader) cut() error {
	if r.info.Size > 0 {
		return fmt.Errorf("%w: it is cut off: it should have %d bytes", ErrDamaged, r.info.Size)
	}
	return fmt.Errorf("%w: it is cut off", ErrDamaged)
}

// each yields every record, once it is known to be readable, and at the end makes sure that they were all. What it yields
// is valid until the next one.
func (r *backupReader) each(ctx context.Context, yield func(op) error) error {
	h := r.header
	buckets := backupBuckets(h.GetSchema())
	counts := map[string]int64{}
	at, key := 0, []byte(nil) // the last one's bucket and key
	next := registry.Revision(h.GetOldest())
	for r.read < h.GetLength() {
		if err := ctx.Err(); err != nil {
			return err
		}
		o, err := r.op(h.GetLength() - r.read)
		if err != nil {
			return err
		}
		for at < len(buckets) && !bytes.Equal(buckets[at], o.bucket) {
			at, key = at+1, nil
		}
		switch {
		case at == len(buckets):
			return fmt.Errorf("%w: a record of kind %q, where none can be", ErrDamaged, o.bucket)
		case key != nil && bytes.Compare(key, o.key) >= 0:
			return fmt.Errorf("%w: %s %q is not where it belongs", ErrDamaged, o.bucket, o.key)
		case bytes.Equal(o.bucket, bucketEvent) && !bytes.Equal(o.key, eventKey(next)):
			return fmt.Errorf("%w: revision %d is missing", ErrDamaged, next)
		case bytes.Equal(o.bucket, bucketEvent):
			next++
		default:
			counts[string(o.bucket)]++
		}
		key = append(key[:0:0], o.key...)
		if err := readable(o); err != nil {
			return fmt.Errorf("%s %q: %w", o.bucket, o.key, err)
		}
		if err := yield(o); err != nil {
			return err
		}
	}
	if want := registry.Revision(h.GetRevision()) + 1; next != want {
		return fmt.Errorf("%w: revision %d is missing", ErrDamaged, next)
	}
	for _, name := range bucketsOfRecords(h.GetSchema()) {
		if n, want := counts[string(name)], h.GetRecords()[string(name)]; n != want {
			return fmt.Errorf("%w: of %d records of kind %s there are %d", ErrDamaged, want, name, n)
		}
	}
	return r.end()
}

// end compares the checksum, after which nothing may come.
func (r *backupReader) end() error {
	var have [sha256.Size]byte
	if _, err := io.ReadFull(r.in, have[:]); short(err) {
		return r.cut()
	} else if err != nil {
		return err
	}
	if !bytes.Equal(have[:], r.sum.Sum(nil)) {
		return fmt.Errorf("%w: the checksum at its end is not that of what comes before", ErrDamaged)
	}
	if _, err := r.in.ReadByte(); err == nil {
		return fmt.Errorf("%w: it goes on after its end", ErrDamaged)
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// op reads the next one, which has at most so many bytes.
func (r *backupReader) op(most int64) (o op, err error) {
	began := r.read
	r.b = r.b[:0]
	var ends [3]int
	for i := range ends {
		n, err := r.length()
		if err != nil {
			return o, err
		}
		if i == 2 { // a value's is one more
			n--
		}
		if n < 0 || n > most-(r.read-began) {
			return o, fmt.Errorf("%w: a record in it has no end", ErrDamaged)
		}
		from := len(r.b)
		// Memory for what has come, and not for what a length says.
		for part := int64(0); part < n; {
			take := min(n-part, 1<<20)
			r.b = append(r.b, make([]byte, take)...)
			if err := r.full(r.b[from+int(part):]); err != nil {
				return o, err
			}
			part += take
		}
		r.read += n
		ends[i] = len(r.b)
	}
	o = op{r.b[:ends[0]], r.b[ends[0]:ends[1]], r.b[ends[1]:ends[2]]}
	if len(o.key) == 0 {
		return o, fmt.Errorf("%w: a record of kind %q without a key", ErrDamaged, o.bucket)
	}
	return o, nil
}

// length reads a varint.
func (r *backupReader) length() (int64, error) {
	var n uint64
	for shift := 0; shift < 63; shift += 7 {
		var b [1]byte
		if err := r.full(b[:]); err != nil {
			return 0, err
		}
		r.read++
		n |= uint64(b[0]&0x7f) << shift
		if b[0] < 0x80 {
			return int64(n), nil
		}
	}
	return 0, fmt.Errorf("%w: a length in it has no end", ErrDamaged)
}

// readable says whether this portd knows what an op puts.
func readable(o op) (err error) {
	switch string(o.bucket) {
	case string(bucketReservation):
		_, err = decode(o.key, o.value, (*fromStored).reservation)
	case string(bucketLease):
		_, err = decode(o.key, o.value, (*fromStored).lease)
	case string(bucketRequest):
		_, err = decode(o.key, o.value, (*fromStored).request)
	case string(bucketBoot):
		_, err = decode(o.key, o.value, (*fromStored).boot)
	case string(bucketEdition):
		_, err = decode(o.key, o.value, (*fromStored).edition)
	case string(bucketService):
		_, err = decode(o.key, o.value, (*fromStored).service)
	case string(bucketFormer):
		_, err = decode(o.key, o.value, (*fromStored).former)
	case string(bucketNamespace):
		_, err = decode(o.key, o.value, (*fromStored).namespace)
	case string(bucketEvent):
		_, err = decode(o.key, o.value, func(c *fromStored, m *storepb.Change) registry.Change { return c.change(0, m) })
	default:
		err = fmt.Errorf("%w: there is no such kind", ErrDamaged)
	}
	return err
}
