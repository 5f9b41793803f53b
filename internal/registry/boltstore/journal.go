package boltstore

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/registry"
)

// A commit is a record in a file beside the database, whose room was made and filled beforehand, so that one write and one
// sync of data make it durable; bbolt takes two, and writes many pages. Integers are big-endian:
//
//	at 0        journalMagic; CRC-32C of what follows (4 bytes), id (16), length of the store's id (1), the store's id
//	in blocks   recordMagic; CRC-32C of what follows (4 bytes), length of the ops (4), id of the journal (16),
//	            revision before the batch (8), its last (8), oldest revision that it leaves (8), the batch's ops
//
// The database knows the journal's id and length. Records go round in the rest of the file. One is of use while its
// last revision is beyond the database's; then it may be overwritten. The id is random and never leaves the two files, so that
// nothing that a caller has portd write can look like a record.
const (
	journalMagic = "portd journal 1\n"
	recordMagic  = "portdrec"
	headerBytes  = len(journalMagic) + 4
	recordBytes  = len(recordMagic) + 4 + 4 + 16 + 3*8

	// A record begins on a page of its own: a write that fails touches nothing that was answered.
	block = 4096

	firstSize   = 256 << 10 // of a new journal, which takes less than two milliseconds
	defaultSize = 8 << 20   // to which it grows under load
)

// A journalID is of one journal, which lives from the first commit after the store was opened until it is closed.
type journalID [16]byte

// A journal is an open file.
type journal struct {
	path string
	file *os.File
	id   journalID
	size int64 // of what is used; the file is as long or longer
	head int64 // where the next record goes, if there is room

	// doubt is where a record is that could not be written or synced, and may be on the disk all the same; 0: nowhere.
	doubt int64
}

func journalPath(path string) string { return path + "-journal" }

// createJournal makes the journal of a store in one step, as far as others can see. What was there under its name is gone then.
func createJournal(path, storeID string) (_ *journal, err error) {
	j := &journal{path: path, size: firstSize, head: block}
	if _, err := rand.Read(j.id[:]); err != nil {
		return nil, err
	}
	if j.file, err = os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.file.Close(), removeIfThere(path+".new"))
		}
	}()
	all := make([]byte, j.size)
	copy(all, journalMagic)
	h := append(all[headerBytes:headerBytes], j.id[:]...)
	h = append(append(h, byte(len(storeID))), storeID...)
	binary.BigEndian.PutUint32(all[len(journalMagic):], crc32.Checksum(h, castagnoli))
	if _, err := j.file.WriteAt(all, 0); err != nil {
		return nil, err
	}
	if err := j.file.Sync(); err != nil {
		return nil, err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return nil, err
	}
	return j, syncDir(filepath.Dir(path))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// journalHeader reads the first block.
func journalHeader(b []byte) (id journalID, storeID string, err error) {
	bad := fmt.Errorf("%w: it is no journal of portd's", ErrForeign)
	if len(b) < block || string(b[:len(journalMagic)]) != journalMagic {
		return id, "", bad
	}
	h := b[headerBytes:block]
	n := len(id) + 1 + int(h[len(id)])
	if crc32.Checksum(h[:n], castagnoli) != binary.BigEndian.Uint32(b[len(journalMagic):]) {
		return id, "", bad
	}
	return journalID(h[:len(id)]), string(h[len(id)+1 : n]), nil
}

// room says where n bytes can go while the records from tail on are still needed; 0 where there is no room. tail is 0
// where none is.
func (j *journal) room(tail int64, n int64) int64 {
	switch {
	case tail == 0: // from the start, so that a journal that is not under load stays in the same few pages
		if block+n <= j.size {
			return block
		}
	case j.head > tail:
		if j.head+n <= j.size {
			return j.head
		}
		if block+n <= tail {
			return block
		}
	case j.head+n <= tail:
		return j.head
	}
	return 0
}

// write makes a record durable. After an error it is nowhere, unless erase has yet to make sure of that.
func (j *journal) write(record []byte, at int64) error {
	err := func() error {
		if _, err := j.file.WriteAt(record, at); err != nil {
			if j.has(record, at) {
				j.doubt = at
			}
			return err
		}
		if err := datasync(j.file); err != nil {
			j.doubt = at
			return err
		}
		return nil
	}()
	if err != nil {
		return errors.Join(err, j.erase())
	}
	j.head = at + int64(len(record))
	return nil
}

// has says whether a record that could not be written is there all the same, as a whole, or may be. How much was written before the error
// WriteAt does not say, and most of a record's last block is empty.
func (j *journal) has(record []byte, at int64) bool {
	there := make([]byte, len(record))
	if _, err := j.file.ReadAt(there, at); err != nil {
		return true
	}
	b, err := readRecord(there, j.id)
	return (b != nil || err != nil) && bytes.Equal(there[:recordBytes], record[:recordBytes])
}

var noRecord [block]byte

// erase makes sure that the record in doubt is not on the disk.
func (j *journal) erase() error {
	if j.doubt == 0 {
		return nil
	}
	if _, err := j.file.WriteAt(noRecord[:], j.doubt); err != nil {
		return err
	}
	if err := datasync(j.file); err != nil {
		return err
	}
	j.doubt = 0
	return nil
}

// settle writes everything once more, as it was read. A page whose sync failed counts as clean, so what a portd that died has left
// may be in memory only: a last record, after which nothing may be on the disk without it, or the zeros over one that failed, which
// must not be found there next to another.
func (j *journal) settle() error {
	w := window{file: j.file, size: j.size}
	for at := int64(0); at < j.size; {
		some, err := w.show(at, pane)
		if err != nil {
			return err
		}
		if _, err := j.file.WriteAt(some, at); err != nil {
			return err
		}
		at += int64(len(some))
	}
	return datasync(j.file)
}

// grow makes the file longer, which is of use only once the database knows it. It does not touch what j knows of it, and
// where it fails it gives back what it took of a disk that may be full.
//
// It has an open file of its own: the kernel tells each of them once of a page that could not be written, so that who waits for a
// record meanwhile would not be told.
func (j *journal) grow(from, to int64) (err error) {
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", j.file.Fd()), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Truncate(from))
		}
		err = errors.Join(err, f.Close())
	}()
	if _, err := f.WriteAt(make([]byte, to-from), from); err != nil {
		return err
	}
	return datasync(f)
}

// datasync is fdatasync(2), which some file systems let a signal interrupt.
func datasync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}

// seal completes a record for its journal. What batch.encode made has room for it.
func (j *journal) seal(record []byte, b *batch) {
	copy(record, recordMagic)
	h := record[len(recordMagic)+4:]
	binary.BigEndian.PutUint32(h, uint32(b.length))
	copy(h[4:], j.id[:])
	binary.BigEndian.PutUint64(h[20:], uint64(b.base))
	binary.BigEndian.PutUint64(h[28:], uint64(b.last))
	binary.BigEndian.PutUint64(h[36:], uint64(b.oldest))
	binary.BigEndian.PutUint32(record[len(recordMagic):], crc32.Checksum(h[:recordBytes-len(recordMagic)-4+b.length], castagnoli))
}

// recordEnd is where in b, of which the start is enough, the record at its start ends; 0 where there is none of that journal.
func recordEnd(b []byte, id journalID) int64 {
	if len(b) < recordBytes || string(b[:len(recordMagic)]) != recordMagic {
		return 0
	}
	h := b[len(recordMagic)+4:]
	if journalID(h[4:20]) != id {
		return 0
	}
	return int64(recordBytes) + int64(binary.BigEndian.Uint32(h))
}

// wholeRecord says whether b is one, from its start to its end.
func wholeRecord(b []byte) bool {
	h := len(recordMagic) + 4
	return crc32.Checksum(b[h:], castagnoli) == binary.BigEndian.Uint32(b[len(recordMagic):])
}

// lastRevision is the last revision of a record.
func lastRevision(b []byte) registry.Revision {
	return registry.Revision(binary.BigEndian.Uint64(b[len(recordMagic)+4+28:]))
}

// readRecord reads the record at the start of b; nil where there is no whole one. The batch has parts of b.
func readRecord(b []byte, id journalID) (*batch, error) {
	end := recordEnd(b, id)
	if end == 0 || end > int64(len(b)) || !wholeRecord(b[:end]) {
		return nil, nil
	}
	ops, err := readOps(b[recordBytes:end])
	if err != nil {
		return nil, err
	}
	h := b[len(recordMagic)+4:]
	batch := &batch{
		base: registry.Revision(binary.BigEndian.Uint64(h[20:])), last: lastRevision(b),
		oldest: registry.Revision(binary.BigEndian.Uint64(h[36:])), ops: ops, length: int(end) - recordBytes,
	}
	if batch.base < 0 || batch.last <= batch.base || batch.oldest < 0 || batch.oldest > batch.last+1 {
		return nil, fmt.Errorf("%w: it has a record of revisions %d to %d", ErrDamaged, batch.base, batch.last)
	}
	return batch, nil
}

// pane is how much of a file is looked at at a time, in bytes.
const pane = 256 << 10

// A window shows parts of a file. To read a journal of many megabytes as a whole, into memory that is new, takes several times as long.
type window struct {
	file  io.ReaderAt
	size  int64
	from  int64
	there []byte // of the file, from there on
}

// show is what the file has from a place on, n bytes or less at its end, until the next call.
func (w *window) show(at, n int64) ([]byte, error) {
	n = min(n, w.size-at)
	if at < w.from || at+n > w.from+int64(len(w.there)) {
		have := min(max(n, pane), w.size-at)
		w.from, w.there = at, slices.Grow(w.there[:0], int(have))[:have]
		if _, err := io.ReadFull(io.NewSectionReader(w.file, at, int64(len(w.there))), w.there); err != nil {
			return nil, err
		}
	}
	return w.there[at-w.from:][:n], nil
}

// records reads from a journal what goes beyond a revision, in order. A record that is not whole is one that was being
// written when portd died, and was not answered, unless there are others after it.
func records(w *window, id journalID, beyond registry.Revision) ([]*batch, error) {
	var found []*batch
	for at := int64(block); at < w.size; {
		b, err := w.show(at, block)
		if err != nil {
			return nil, err
		}
		end := recordEnd(b, id)
		if end > int64(len(b)) && end <= w.size-at {
			if b, err = w.show(at, end); err != nil {
				return nil, err
			}
		}
		if end == 0 || end > int64(len(b)) || !wholeRecord(b[:end]) {
			at += block
			continue
		}
		if lastRevision(b) > beyond { // what is older is whole, and nobody asks what it says
			batch, err := readRecord(bytes.Clone(b[:end]), id)
			if err != nil {
				return nil, err
			}
			batch.at = at
			found = append(found, batch)
		}
		at += blocks(end)
	}
	slices.SortFunc(found, func(a, b *batch) int { return cmp.Compare(a.base, b.base) })
	at := beyond
	for i, b := range found {
		switch {
		case b.base > at:
			return nil, fmt.Errorf("%w: %s missing, and later ones are there", ErrDamaged, changesOf(at+1, b.base))
		case b.base < at:
			return nil, fmt.Errorf("%w: of revision %d there are two", ErrDamaged, b.base+1)
		case i > 0 && b.at != found[i-1].at+found[i-1].size() && b.at != block:
			return nil, fmt.Errorf("%w: revision %d is not where it would be written", ErrDamaged, b.base+1)
		}
		at = b.last
	}
	return found, nil
}

// changesOf names the changes from one revision to another, as the subject of a sentence.
func changesOf(first, last registry.Revision) string {
	if first == last {
		return fmt.Sprintf("the change of revision %d is", first)
	}
	return fmt.Sprintf("the changes of revisions %d to %d are", first, last)
}

// openJournal opens what a portd that died has left beside its database, and reads what goes beyond that.
func openJournal(path, storeID string, id journalID, size int64, beyond registry.Revision, flag int) (j *journal, found []*batch, err error) {
	f, err := os.OpenFile(path, flag, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, fmt.Errorf("%w: %s is missing, and has changes that the database has not: put it back beside it", ErrDamaged, path)
	case err != nil:
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
		}
	}()
	w, err := windowOf(f, size)
	if err != nil {
		return nil, nil, err
	}
	head, err := w.show(0, block)
	if err != nil {
		return nil, nil, err
	}
	haveID, haveStore, err := journalHeader(head)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("%w: put back the one that belongs to the database", err)
	case haveStore != storeID:
		return nil, nil, fmt.Errorf("%w: it is of the store %s, and the database is %s: put back the one that belongs to it", ErrForeign, haveStore, storeID)
	case haveID != id:
		return nil, nil, fmt.Errorf("%w: it is of another time than the database: put back the two that belong together", ErrDamaged)
	case w.size < size:
		return nil, nil, fmt.Errorf("%w: cut off after %d of %d bytes", ErrDamaged, w.size, size)
	}
	if found, err = records(w, id, beyond); err != nil {
		return nil, nil, err
	}
	j = &journal{path: path, file: f, id: id, size: size, head: block}
	if n := len(found); n > 0 {
		j.head = found[n-1].at + found[n-1].size()
	}
	return j, found, nil
}

// checkLeftover looks at a journal beside a database that was closed and needs none. Usually there is none. One that has
// something that the database lacks is not portd's to throw away.
func checkLeftover(path, storeID string, beyond registry.Revision) error {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	defer f.Close()
	w, err := windowOf(f, 1<<30)
	if err != nil {
		return err
	}
	head, err := w.show(0, block)
	if err != nil {
		return err
	}
	id, haveStore, err := journalHeader(head)
	switch {
	case err != nil:
	case haveStore != storeID:
		err = fmt.Errorf("%w: it is of the store %s, and the database is %s", ErrForeign, haveStore, storeID)
	default:
		var found []*batch
		if found, err = records(w, id, beyond); err == nil && len(found) > 0 {
			err = fmt.Errorf("%w: it goes on to revision %d, and the database was closed at %d", ErrDamaged, found[len(found)-1].last, beyond)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w: put back the database that belongs to it, or move it away to go on without", path, err)
	}
	return nil
}

// windowOf shows so many bytes of a file, or all that it has.
func windowOf(f *os.File, size int64) (*window, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: not a regular file", ErrForeign)
	}
	return &window{file: f, size: min(size, info.Size())}, nil
}

// appendOp writes an op as a journal has it: bucket, key and value, each after its length. No value has length 0, and any
// other one more than it has.
func appendOp(b []byte, o op) []byte {
	b = append(binary.AppendUvarint(b, uint64(len(o.bucket))), o.bucket...)
	b = append(binary.AppendUvarint(b, uint64(len(o.key))), o.key...)
	if o.value == nil {
		return append(b, 0)
	}
	return append(binary.AppendUvarint(b, uint64(len(o.value))+1), o.value...)
}

func readOps(b []byte) (ops []op, err error) {
	bad := false
	length := func() uint64 {
		n, used := binary.Uvarint(b)
		if bad = bad || used <= 0; bad {
			return 0
		}
		b = b[used:]
		return n
	}
	take := func(n uint64) (v []byte) {
		if bad = bad || n > uint64(len(b)); bad {
			return nil
		}
		v, b = b[:n:n], b[n:]
		return v
	}
	for len(b) > 0 {
		o := op{bucket: take(length())}
		o.key = take(length())
		if n := length(); n > 0 {
			o.value = take(n - 1)
		}
		switch {
		case bad:
			return nil, fmt.Errorf("%w: a record in it has no end", ErrDamaged)
		case len(o.key) == 0 || bytes.Equal(o.bucket, bucketMeta):
			return nil, fmt.Errorf("%w: a record in it has %q of %q", ErrDamaged, o.key, o.bucket)
		}
		ops = append(ops, o)
	}
	return ops, nil
}
