package keeper

import (
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portd/portd/internal/lossy"
)

// farewell is how long a process that ends waits for who reads its log.
const farewell = time.Second

// Log is how portd logs, the daemon and its keeper alike: text where a person reads along, and JSON where a program does. It does not
// wait for either, until flush is called at the end.
func Log(w io.Writer, level slog.Level) (log *slog.Logger, flush func()) {
	opts := &slog.HandlerOptions{Level: level}
	out := lossy.New(w, func(lines int) {
		log.Warn("lines of the log are lost: nobody read them, or they could not be written", "lines", lines)
	})
	flush = func() { out.Close(farewell) }
	if f, ok := w.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			return slog.New(slog.NewTextHandler(out, opts)), flush
		}
	}
	return slog.New(slog.NewJSONHandler(out, opts)), flush
}
