// Package lossy writes a log without ever waiting for who reads it.
//
// A log goes to a pipe or a socket, and blocks its writer once nobody reads: a journal that hangs, a terminal that was stopped. A
// program that hands over connections must not stop for that. So lines wait in memory, and what does not fit there is lost and counted.
package lossy

import (
	"bytes"
	"io"
	"sync"
	"time"
)

// most is how many bytes wait: some thousand lines.
const most = 1 << 20

// A Writer is an io.Writer that takes whole lines. It is safe for concurrent use.
type Writer struct {
	to   io.Writer
	tell func(lines int)

	more chan struct{} // something waits
	end  chan struct{} // closed by Close
	done chan struct{} // closed when all has been written after that

	mu      sync.Mutex
	waiting []byte
	lost    int  // lines since tell
	closed  bool // by Close
}

// New makes a Writer to something that may block or fail. Where lines were lost tell is called with how many, after the next that
// was written; it may write itself. Close it.
func New(to io.Writer, tell func(lines int)) *Writer {
	w := &Writer{to: to, tell: tell, more: make(chan struct{}, 1), end: make(chan struct{}), done: make(chan struct{})}
	go w.run()
	return w
}

// Write takes p, which it copies, and never fails.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	if w.closed || len(w.waiting)+len(p) > most {
		w.lost += lines(p)
	} else {
		w.waiting = append(w.waiting, p...)
	}
	w.mu.Unlock()
	select {
	case w.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

// Close writes what waits, for so long at most, and takes no more.
func (w *Writer) Close(patience time.Duration) {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		close(w.end)
	}
	w.mu.Unlock()
	select {
	case <-w.done:
	case <-time.After(patience):
	}
}

func (w *Writer) run() {
	defer close(w.done)
	var out []byte
	for {
		w.mu.Lock()
		out, w.waiting = w.waiting, out[:0]
		w.mu.Unlock()
		if len(out) > 0 {
			w.write(out)
			continue
		}
		select {
		case <-w.more:
		case <-w.end:
			w.mu.Lock()
			empty := len(w.waiting) == 0
			w.mu.Unlock()
			if empty {
				return
			}
		}
	}
}

func (w *Writer) write(out []byte) {
	n, err := w.to.Write(out)
	w.mu.Lock()
	if err != nil {
		w.lost += lines(out[n:])
	}
	lost := w.lost
	if err == nil {
		w.lost = 0
	}
	w.mu.Unlock()
	if err == nil && lost > 0 { // else nobody hears it, and that line would be the next one that fails
		w.tell(lost)
	}
}

func lines(p []byte) int { return bytes.Count(p, []byte{'\n'}) }
