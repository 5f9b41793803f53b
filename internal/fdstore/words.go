package fdstore

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// maxWords is how long a message may be, in bytes; systemd takes no more either.
const maxWords = 4096

// maxName is how long a name may be.
const maxName = 32

// MaxNames is how many descriptors one message has at most.
const MaxNames = 100

// Several is the message by which several descriptors come at once, at most MaxNames, each with its name. One by one they take twice the time,
// while clients wait. Nobody but portd's keeper says it, and to the program that it is itself only: an older one would not know.
func Several(names []string) string { return "FDSTORE=1\nFDNAMES=" + strings.Join(names, ":") }

// Words are what one message to a keeper, or from one, says: lines of sd_notify(3), and portd's own.
type Words struct {
	Store, Remove bool     // FDSTORE=1, FDSTOREREMOVE=1
	Name          string   // FDNAME=
	Names         []string // FDNAMES=: of several descriptors of one message, divided by ':' as in LISTEN_FDNAMES
	Barrier       bool     // BARRIER=1
	Ready         bool     // READY=1; of a stream of items: that was all
	Stopping      bool     // STOPPING=1
	Reloading     bool     // RELOADING=1
	Status        bool     // STATUS= is said
	Begin, End    bool     // RESET=1, RESET=0: what is not stored anew between them is to be let go of
	MainPID       int      // MAINPID=
	Successor     int      // SUCCESSOR=: a process that may become the main one
	Keeper        bool     // KEEPER=1: the keeper's pidfd comes with it
	Link          bool     // LINK=1: the socket to the keeper comes with it, from a predecessor
	Binary        string   // BINARY=: what is started next time, an absolute path
	Upgrade       bool     // UPGRADE=1: the keeper is to become BINARY itself
}

// Parse reads a message. Keys that are not known, those of a later release, are passed over; what is known must be right.
func Parse(text []byte) (Words, error) {
	var w Words
	if len(text) > maxWords {
		return w, fmt.Errorf("a message of %d bytes; %d is the most", len(text), maxWords)
	}
	var errs []error
	for line := range bytes.SplitSeq(bytes.TrimSuffix(text, []byte("\n")), []byte("\n")) {
		key, value, ok := bytes.Cut(line, []byte("="))
		if !ok {
			errs = append(errs, fmt.Errorf("%q has no value", line))
			continue
		}
		if err := w.set(string(key), string(value)); err != nil {
			errs = append(errs, fmt.Errorf("%q: %w", line, err))
		}
	}
	if (w.Store || w.Remove) && w.Name == "" && (len(w.Names) == 0 || w.Remove) {
		errs = append(errs, errors.New("a descriptor without a name"))
	}
	return w, errors.Join(errs...)
}

func (w *Words) set(key, value string) error {
	var err error
	switch key {
	case "FDSTORE":
		w.Store = value == "1"
	case "FDSTOREREMOVE":
		w.Remove = value == "1"
	case "FDNAME":
		w.Name, err = value, checkName(value)
	case "FDNAMES":
		w.Names = strings.Split(value, ":")
		for _, name := range w.Names {
			err = errors.Join(err, checkName(name))
		}
	case "BARRIER":
		w.Barrier = value == "1"
	case "READY":
		w.Ready = value == "1"
	case "STOPPING":
		w.Stopping = value == "1"
	case "RELOADING":
		w.Reloading = value == "1"
	case "STATUS":
		w.Status = true
	case "RESET":
		w.Begin, w.End = value == "1", value == "0"
	case "MAINPID":
		w.MainPID, err = parsePID(value)
	case "SUCCESSOR":
		w.Successor, err = parsePID(value)
	case "KEEPER":
		w.Keeper = value == "1"
	case "LINK":
		w.Link = value == "1"
	case "BINARY":
		if w.Binary = value; !filepath.IsAbs(value) || bytes.IndexByte([]byte(value), 0) >= 0 {
			err = errors.New("not an absolute path")
		}
	case "UPGRADE":
		w.Upgrade = value == "1"
	}
	return err
}

func parsePID(value string) (int, error) {
	pid, err := strconv.ParseInt(value, 10, 32)
	if err == nil && pid <= 0 {
		err = errors.New("not a pid")
	}
	return int(pid), err
}

func checkName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("a name has 1 to %d characters", maxName)
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-':
		default:
			return errors.New("a name has letters, digits, '.' and '-' only")
		}
	}
	return nil
}
