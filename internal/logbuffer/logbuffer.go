// Package logbuffer keeps a log from holding up those who write to it. A full pipe, a stuck log driver or a
// suspended terminal would otherwise stop every request.
package logbuffer

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	size  = 256 << 10            // bounds, in bytes, the lines that wait; those being written may be as many
	pause = 2 * time.Millisecond // between two writes, so that those of a busy log have many lines
)

// Writer takes lines without delay and writes them in the background, many at a time. Lines that do not fit are
// dropped and counted. After the next write that succeeds, a line says how many.
type Writer struct {
	out     io.Writer
	arrived chan struct{} // gets an element when lines arrive; closed by Close
	done    chan struct{} // closed when everything has been written after Close

	mu      sync.Mutex
	lines   []byte // waiting to be written
	dropped int    // lines that did not fit or came after Close, since run last looked
	closed  bool
}

// New returns a Writer that writes to out until Close.
func New(out io.Writer) *Writer {
	w := &Writer{out: out, arrived: make(chan struct{}, 1), done: make(chan struct{})}
	go w.run()
	return w
}

// Write takes one line. It never waits and never fails.
func (w *Writer) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || len(w.lines)+len(line) > size {
		w.dropped++
		return len(line), nil
	}
	w.lines = append(w.lines, line...)
	select {
	case w.arrived <- struct{}{}:
	default:
	}
	return len(line), nil
}

// Close waits until all lines are written, but at most for the given time. Later lines are dropped. Call it once.
func (w *Writer) Close(atMost time.Duration) {
	w.mu.Lock()
	w.closed = true
	close(w.arrived)
	w.mu.Unlock()
	select {
	case <-w.done:
	case <-time.After(atMost):
	}
}

func (w *Writer) run() {
	defer close(w.done)
	log := slog.NewJSONHandler(w.out, nil)
	var writing []byte
	lost := 0 // lines that the log lacks and does not mention yet
	for range w.arrived {
		w.mu.Lock()
		writing, w.lines = w.lines, writing[:0]
		lost += w.dropped
		w.dropped = 0
		w.mu.Unlock()

		n, err := w.out.Write(writing)
		lost += bytes.Count(writing[n:], []byte{'\n'})
		if err == nil && lost > 0 {
			warning := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines were dropped, because the log could not be written", 0)
			warning.AddAttrs(slog.Int("lines", lost))
			if log.Handle(context.Background(), warning) == nil {
				lost = 0
			}
		}
		time.Sleep(pause)
	}
}
