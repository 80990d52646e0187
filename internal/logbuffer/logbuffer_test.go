package logbuffer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const warning = "log lines were dropped, because nobody read the log"

// blocked is an output that takes nothing until it is released.
type blocked struct {
	bytes.Buffer
	release chan struct{}
	writes  atomic.Int64
}

func (b *blocked) Write(p []byte) (int, error) {
	b.writes.Add(1)
	<-b.release
	return b.Buffer.Write(p)
}

func TestNothingIsLostOrReordered(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer // only read after Close
	w := New(&out)
	const writers, each = 8, 1000
	var writing sync.WaitGroup
	for i := 0; i < writers; i++ {
		writing.Add(1)
		go func(i int) {
			defer writing.Done()
			for n := 0; n < each; n++ {
				fmt.Fprintf(w, "%d %d\n", i, n)
			}
		}(i)
	}
	writing.Wait()
	w.Close(time.Minute)
	var next [writers]int
	for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		var i, n int
		if _, err := fmt.Sscanf(line, "%d %d", &i, &n); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		if n != next[i] {
			t.Fatalf("writer %d: got line %d, want %d", i, n, next[i])
		}
		next[i]++
	}
	for i, n := range next {
		if n != each {
			t.Errorf("writer %d: got %d lines, want %d", i, n, each)
		}
	}
}

func TestBlockedOutputCostsLinesAndTheLogSaysHowMany(t *testing.T) {
	t.Parallel()
	out := &blocked{release: make(chan struct{})}
	w := New(out)
	line := []byte(strings.Repeat("x", 1023) + "\n")
	const lines = 3 * size / 1024
	for i := 0; i < lines; i++ {
		if n, err := w.Write(line); n != len(line) || err != nil {
			t.Fatalf("got %d, %v, want %d and no error", n, err, len(line))
		}
	}
	w.Close(time.Millisecond) // returns although nothing can be written
	close(out.release)
	w.Close(time.Minute)

	written, dropped := 0, 0
	for _, text := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		if text+"\n" == string(line) {
			written++
			continue
		}
		var record struct {
			Level, Msg string
			Lines      int
		}
		if err := json.Unmarshal([]byte(text), &record); err != nil || record.Level != "WARN" || record.Msg != warning {
			t.Fatalf("got the line %q (%v), want a warning", text, err)
		}
		dropped += record.Lines
	}
	if dropped < size/1024 || written+dropped != lines {
		t.Errorf("%d lines were written and %d reported as dropped, want %d in all, and at least %d dropped", written, dropped, lines, size/1024)
	}
	if got := out.writes.Load(); got > 8 {
		t.Errorf("got %d writes, want many lines in each", got)
	}
}

// failing is an output that fails until it is told not to.
type failing struct {
	bytes.Buffer
	works atomic.Bool
	tried chan struct{}
}

func (f *failing) Write(p []byte) (int, error) {
	defer func() { f.tried <- struct{}{} }()
	if !f.works.Load() {
		return 0, errors.New("no space left on device")
	}
	return f.Buffer.Write(p)
}

func TestLinesThatCannotBeWrittenAreCounted(t *testing.T) {
	t.Parallel()
	out := &failing{tried: make(chan struct{}, 10)}
	w := New(out)
	io.WriteString(w, "lost 1\n")
	<-out.tried
	io.WriteString(w, "lost 2\n")
	<-out.tried
	out.works.Store(true)
	io.WriteString(w, "kept\n")
	w.Close(time.Minute)
	if got := out.String(); !strings.HasPrefix(got, "kept\n{") || !strings.Contains(got, `"lines":2}`) {
		t.Errorf("got %q, want kept and a warning of 2 lines", got)
	}
}

func TestWriteAfterCloseIsDropped(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	w := New(&out)
	io.WriteString(w, "before\n")
	w.Close(time.Minute)
	io.WriteString(w, "after\n")
	if got := out.String(); got != "before\n" {
		t.Errorf("got %q, want the line before Close", got)
	}
}
