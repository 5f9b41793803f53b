package main

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/portd/portd/internal/ianadb"
)

// A registryFile is the bytes of a registry, unpacked, at most ianadb.MaxFile of them.
type registryFile struct {
	from string // its name or URL, for people
	in   *bufio.Reader
	left int64
	file io.Closer
}

// openRegistry opens a file, or standard input for "-". The caller closes it.
func (c *ctl) openRegistry(name string) (*registryFile, error) {
	if name == "-" {
		return newRegistryFile("standard input", c.stdin)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	r, err := newRegistryFile(name, f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	r.file = f
	return r, nil
}

// newRegistryFile unpacks in where it is gzipped (RFC 1952), whatever its name says.
func newRegistryFile(from string, in io.Reader) (*registryFile, error) {
	r := &registryFile{from: printable(from), in: bufio.NewReader(in), left: ianadb.MaxFile}
	head, err := r.in.Peek(len(gzipMagic))
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, r.failed(err)
	case string(head) != gzipMagic:
		return r, nil
	}
	unpacked, err := gzip.NewReader(r.in)
	if err != nil {
		return nil, r.failed(err)
	}
	unpacked.Multistream(false)
	r.in = bufio.NewReader(&members{r.in, unpacked})
	return r, nil
}

// members reads one gzip member after the other (RFC 1952 section 2.2), and tells what is none from one that is cut off.
type members struct {
	in  *bufio.Reader
	one *gzip.Reader
}

var errBehindGzip = errors.New("something else follows its gzip stream")

func (m *members) Read(p []byte) (int, error) {
	n, err := m.one.Read(p)
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	switch head, err := m.in.Peek(len(gzipMagic)); {
	case err != nil && !errors.Is(err, io.EOF):
		return n, err
	case len(head) == 0:
		return n, io.EOF
	case string(head) != gzipMagic:
		return n, errBehindGzip
	}
	err = m.one.Reset(m.in)
	m.one.Multistream(false)
	return n, err
}

const gzipMagic = "\x1f\x8b"

// Read fails where the file goes on after what a registry may have; a small packed file can be very large.
func (r *registryFile) Read(p []byte) (int, error) {
	if r.left == 0 {
		if _, err := r.in.Peek(1); err == nil {
			return 0, fmt.Errorf("%s has more than %d MiB, which no registry has", r.from, ianadb.MaxFile>>20)
		}
	}
	n, err := r.in.Read(p[:min(int64(len(p)), max(r.left, 1))])
	r.left -= int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		err = r.failed(err)
	}
	return n, err
}

// failed says what is wrong with the file where the error alone speaks of bytes.
func (r *registryFile) failed(err error) error {
	var named *fs.PathError
	switch {
	case errors.As(err, &named):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s is cut off in the middle of its gzip stream", r.from)
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum):
		return fmt.Errorf("%s is no sound gzip file: %w", r.from, err)
	}
	return fmt.Errorf("%s: %w", r.from, err)
}

// Close closes what openRegistry opened.
func (r *registryFile) Close() error {
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}
