package boltstore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// A walker reads a bbolt file by itself, page by page and with read(2): what leads where, what is used and what is free. bbolt
// has such a check too, which takes as long; but it reads through a mapping, where a page that is not there is a signal, in a goroutine
// where nobody catches that, and a page that leads back to itself it follows until the process has no stack left.
//
// The layout is that of bbolt's internal/common: a page is header (id 8, flags 2, count 2, overflow 4) and elements, in the
// byte order of the host.
type walker struct {
	file   io.ReaderAt
	size   int64 // of a page
	length int64 // of the file
	meta   boltMeta
	seen   []bool // pages below meta.high
	buf    []byte

	// record is called for each record of a bucket; what it gets is valid until it returns.
	record func(bucket, key, value []byte) error
	// wrong is told of what is damaged. Where it returns nil, the walk goes on with what is not.
	wrong func(error) error
}

// A boltMeta is what a meta page says.
type boltMeta struct{ root, freelist, high, tx uint64 }

const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeader  = 16
	elementSize = 16
	metaSize    = 64

	branchPage   = 0x01
	leafPage     = 0x02
	metaPage     = 0x04
	freelistPage = 0x10

	bucketElement = 0x01
	deepest       = 64 // levels: with two elements on each page that is more than any disk has
)

var native = binary.NativeEndian

// walk reads the file, of which nobody writes meanwhile.
func walk(file io.ReaderAt, length int64, record func(bucket, key, value []byte) error, wrong func(error) error) error {
	w := &walker{file: file, length: length, record: record, wrong: wrong}
	if err := w.open(); err != nil {
		return err
	}
	if err := w.freelist(); err != nil {
		return err
	}
	type bucket struct {
		name []byte
		root uint64
	}
	var buckets []bucket
	err := w.tree(w.meta.root, nil, nil, 0, func(flags uint32, key, value []byte) error {
		if flags&bucketElement == 0 || len(value) < elementSize {
			return w.wrong(fmt.Errorf("%w: %q is no bucket", ErrDamaged, key))
		}
		if root := native.Uint64(value); root != 0 {
			buckets = append(buckets, bucket{bytes.Clone(key), root})
			return nil
		}
		return w.inline(bytes.Clone(key), bytes.Clone(value[16:]))
	})
	if err != nil {
		return err
	}
	for _, b := range buckets {
		if err := w.tree(b.root, nil, nil, 0, w.leaf(b.name)); err != nil {
			return err
		}
	}
	return nil
}

// open chooses the meta page that bbolt would: of those that are whole the one of the later transaction.
func (w *walker) open() error {
	found := false
	head := make([]byte, pageHeader+metaSize)
	for _, size := range []int64{int64(os.Getpagesize()), 4096, 8192, 16384, 65536, 1024, 2048, 32768} {
		for i := range int64(2) {
			if _, err := w.file.ReadAt(head, i*size); err != nil {
				continue
			}
			m := head[pageHeader:]
			sum := fnv.New64a()
			sum.Write(m[:56])
			if native.Uint32(m) != boltMagic || native.Uint32(m[4:]) != boltVersion || int64(native.Uint32(m[8:])) != size || native.Uint64(m[56:]) != sum.Sum64() {
				continue
			}
			is := boltMeta{root: native.Uint64(m[16:]), freelist: native.Uint64(m[32:]), high: native.Uint64(m[40:]), tx: native.Uint64(m[48:])}
			if !found || is.tx > w.meta.tx {
				found, w.meta, w.size = true, is, size
			}
		}
		if found {
			break
		}
	}
	if !found {
		return fmt.Errorf("%w: both of its first pages are destroyed", ErrDamaged)
	}
	if pages := uint64(w.length / w.size); w.meta.high > pages {
		if err := w.wrong(fmt.Errorf("%w: cut off after %d of %d bytes", ErrDamaged, w.length, w.meta.high*uint64(w.size))); err != nil {
			return err
		}
		w.meta.high = pages
	}
	w.seen = make([]bool, w.meta.high)
	for i := range min(2, len(w.seen)) {
		w.seen[i] = true
	}
	return nil
}

// page reads one with all that overflows it, and marks it as used. It is nil where wrong was told why not.
func (w *walker) page(id uint64, kinds uint16) (b []byte, flags uint16, count int, err error) {
	bad := func(format string, args ...any) ([]byte, uint16, int, error) {
		return nil, 0, 0, w.wrong(fmt.Errorf("%w: page %d %s", ErrDamaged, id, fmt.Sprintf(format, args...)))
	}
	if id < 2 || id >= w.meta.high {
		return bad("is led to, and there are %d", w.meta.high)
	}
	if int64(len(w.buf)) < w.size {
		w.buf = make([]byte, w.size)
	}
	head := w.buf[:w.size]
	if _, err := w.file.ReadAt(head, int64(id)*w.size); err != nil {
		return bad("cannot be read: %v", err)
	}
	flags = native.Uint16(head[8:])
	count = int(native.Uint16(head[10:]))
	overflow := uint64(native.Uint32(head[12:]))
	switch {
	case native.Uint64(head[:]) != id:
		return bad("says that it is page %d", native.Uint64(head[:]))
	case flags&kinds == 0 || flags&(flags-1) != 0:
		return bad("is of the kind %#x, which does not belong there", flags)
	case overflow >= w.meta.high-id:
		return bad("says that %d more belong to it, and there are %d", overflow, w.meta.high)
	}
	for i := id; i <= id+overflow; i++ {
		if w.seen[i] {
			return bad("is used twice")
		}
	}
	for i := id; i <= id+overflow; i++ {
		w.seen[i] = true
	}
	if overflow == 0 {
		return head, flags, count, nil
	}
	n := int64(overflow+1) * w.size
	if int64(len(w.buf)) < n {
		w.buf = make([]byte, n)
	}
	b = w.buf[:n]
	if _, err := w.file.ReadAt(b, int64(id)*w.size); err != nil {
		return bad("cannot be read: %v", err)
	}
	return b, flags, count, nil
}

// freelist reads which pages are free: bbolt writes over those.
func (w *walker) freelist() error {
	b, _, count, err := w.page(w.meta.freelist, freelistPage)
	if b == nil {
		return err
	}
	ids := b[pageHeader:]
	n := uint64(count)
	if n == 0xFFFF {
		n, ids = native.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids)/8) {
		return w.wrong(fmt.Errorf("%w: page %d says that %d pages are free, and has room for %d", ErrDamaged, w.meta.freelist, n, len(ids)/8))
	}
	for i := range n {
		id := native.Uint64(ids[8*i:])
		if id < 2 || id >= w.meta.high || w.seen[id] {
			if err := w.wrong(fmt.Errorf("%w: page %d says that page %d is free, which cannot be", ErrDamaged, w.meta.freelist, id)); err != nil {
				return err
			}
			continue
		}
		w.seen[id] = true
	}
	return nil
}

// tree reads what is below a page. All keys are in [from, before); nil: no bound.
func (w *walker) tree(id uint64, from, before []byte, depth int, leaf func(flags uint32, key, value []byte) error) error {
	if depth > deepest {
		return w.wrong(fmt.Errorf("%w: page %d is %d levels down", ErrDamaged, id, depth))
	}
	b, flags, count, err := w.page(id, branchPage|leafPage)
	if b == nil {
		return err
	}
	if flags == leafPage {
		return w.elements(id, b, count, from, before, leaf)
	}
	type child struct {
		key []byte
		id  uint64
	}
	children := make([]child, 0, count)
	for i := range count {
		at := pageHeader + i*elementSize
		if at+elementSize > len(b) {
			return w.wrong(fmt.Errorf("%w: page %d has no room for %d elements", ErrDamaged, id, count))
		}
		e := b[at:]
		key, ok := cut(e, uint64(native.Uint32(e)), uint64(native.Uint32(e[4:])))
		if !ok || !inOrder(children, key, func(c child) []byte { return c.key }, from, before) {
			return w.wrong(fmt.Errorf("%w: element %d of page %d is not where it belongs", ErrDamaged, i, id))
		}
		children = append(children, child{bytes.Clone(key), native.Uint64(e[8:])})
	}
	if count == 0 {
		return w.wrong(fmt.Errorf("%w: page %d leads nowhere", ErrDamaged, id))
	}
	for i, c := range children {
		end := before
		if i+1 < len(children) {
			end = children[i+1].key
		}
		if err := w.tree(c.id, c.key, end, depth+1, leaf); err != nil {
			return err
		}
	}
	return nil
}

// elements reads a leaf.
func (w *walker) elements(id uint64, b []byte, count int, from, before []byte, leaf func(uint32, []byte, []byte) error) error {
	var last [][]byte // the one before
	for i := range count {
		at := pageHeader + i*elementSize
		if at+elementSize > len(b) {
			return w.wrong(fmt.Errorf("%w: page %d has no room for %d elements", ErrDamaged, id, count))
		}
		e := b[at:]
		pos, keySize := uint64(native.Uint32(e[4:])), uint64(native.Uint32(e[8:]))
		key, ok := cut(e, pos, keySize)
		var value []byte
		if ok {
			value, ok = cut(e, pos+keySize, uint64(native.Uint32(e[12:])))
		}
		if !ok || !inOrder(last, key, func(k []byte) []byte { return k }, from, before) {
			if err := w.wrong(fmt.Errorf("%w: element %d of page %d is not where it belongs", ErrDamaged, i, id)); err != nil {
				return err
			}
			continue
		}
		last = append(last[:0], key)
		if err := leaf(native.Uint32(e), key, value); err != nil {
			return err
		}
	}
	return nil
}

// cut is n bytes of an element's page, from pos on as seen from the element.
func cut(e []byte, pos, n uint64) ([]byte, bool) {
	if pos+n > uint64(len(e)) || pos < elementSize && n > 0 {
		return nil, false
	}
	return e[pos : pos+n], true
}

func inOrder[E any](before []E, key []byte, keyOf func(E) []byte, from, end []byte) bool {
	if n := len(before); n > 0 && bytes.Compare(keyOf(before[n-1]), key) >= 0 {
		return false
	}
	return bytes.Compare(key, from) >= 0 && (end == nil || bytes.Compare(key, end) < 0)
}

// inline reads a bucket that is small enough to be in a leaf itself.
func (w *walker) inline(name, b []byte) error {
	if len(b) < pageHeader || native.Uint16(b[8:]) != leafPage {
		return w.wrong(fmt.Errorf("%w: the bucket %q is not what it should be", ErrDamaged, name))
	}
	return w.elements(0, b, int(native.Uint16(b[10:])), nil, nil, w.leaf(name))
}

// leaf is what becomes of a record in a bucket.
func (w *walker) leaf(bucket []byte) func(uint32, []byte, []byte) error {
	return func(flags uint32, key, value []byte) error {
		if flags != 0 {
			return w.wrong(fmt.Errorf("%w: %s %q is no record", ErrDamaged, bucket, key))
		}
		return w.record(bucket, key, value)
	}
}

// checkFile makes sure that the pages of a file contradict nothing, and that all records are whole: they are sealed, for a page of
// bbolt's has no checksum. Editions may be damaged, as with Load. All of the file that is in use is read, once.
func checkFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	whole := func(bucket, key, value []byte) error {
		if bytes.Equal(bucket, bucketEdition) || bytes.Equal(bucket, bucketMeta) && bytes.Equal(key, keySchema) {
			return nil
		}
		if err := checkSealed(key, value); err != nil {
			return fmt.Errorf("%s %q: %w", bucket, key, err)
		}
		return nil
	}
	return walk(f, info.Size(), whole, func(err error) error { return err })
}
