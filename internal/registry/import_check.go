package registry

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/portd/portd/internal/ianadb"
)

func (opt ImportOptions) check() error {
	for _, f := range []struct{ field, text string }{
		{"options.from", opt.From}, {"options.last_modified", opt.LastModified}, {"options.etag", opt.ETag},
	} {
		if err := checkText(f.field, f.text); err != nil {
			return err
		}
	}
	if opt.Date == "" {
		return nil
	}
	if _, err := time.Parse(time.DateOnly, opt.Date); err != nil {
		return invalid("options.date", "%.40q is not a date; write it like 2006-01-02", opt.Date)
	}
	if opt.Date > tomorrow() {
		return invalid("options.date", "%s is in the future", opt.Date)
	}
	return nil
}

// tomorrow is the last day that is not in the future anywhere.
func tomorrow() string { return time.Now().UTC().AddDate(0, 0, 1).Format(time.DateOnly) }

// plausible refuses what does not look like the next edition. A date that nobody stated is no reason for that: the one that
// answers may have the day on which a server had it, which is later than that of its latest entry.
func (s *Services) plausible(e *Edition, entries []ianadb.Entry, stated bool) error {
	err := ianadb.CheckSuccessor(s.IANA, entries)
	switch {
	case err != nil:
	case stated && e.Date < s.Current.Date:
		err = fmt.Errorf("it is of %s, and the one that answers is newer, of %s", e.Date, s.Current.Date)
	case e.Date > tomorrow(): // and all that came after it would be older
		err = fmt.Errorf("it is of %s, which is in the future", e.Date)
	default:
		return nil
	}
	return &InvalidError{Field: "data", Code: "IMPLAUSIBLE", Reason: err.Error() + "; force takes it all the same"}
}

// A tap remembers why reading ended before the end, to tell that from what is wrong with what was read.
type tap struct {
	in  io.Reader
	err error
}

func (t *tap) Read(p []byte) (int, error) {
	n, err := t.in.Read(p)
	if !errors.Is(err, io.EOF) {
		t.err = err
	}
	return n, err
}
