package logbuffer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

const warning = "log lines were dropped, because the log could not be written"

// output is what a Writer writes to. The test says what becomes of each write.
type output struct {
	bytes.Buffer
	results chan error // each write waits for its own; closed: all succeed
	writes  int
}

func (o *output) Write(p []byte) (int, error) {
	o.writes++
	if err := <-o.results; err != nil {
		return 0, err
	}
	return o.Buffer.Write(p)
}

func TestAllLinesAreWrittenInOrderUntilClose(t *testing.T) {
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
	io.WriteString(w, "after Close\n")
	var next [writers]int
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for _, line := range lines {
		var i, n int
		if _, err := fmt.Sscanf(line, "%d %d", &i, &n); err != nil || n != next[i] {
			t.Fatalf("got the line %q (%v), want line %d of writer %d", line, err, next[i], i)
		}
		next[i]++
	}
	if len(lines) != writers*each {
		t.Errorf("got %d lines, want %d of each writer: %v", len(lines), each, next)
	}
}

func TestWritesOfABusyLogHaveManyLines(t *testing.T) {
	t.Parallel()
	out := &output{results: make(chan error)}
	close(out.results)
	w, began := New(out), time.Now()
	for time.Since(began) < 20*pause {
		io.WriteString(w, "a line\n")
		time.Sleep(pause / 20)
	}
	w.Close(time.Minute)
	if most := 2 + int(time.Since(began)/pause); out.writes > most {
		t.Errorf("got %d writes, want at most %d", out.writes, most)
	}
}

func TestBlockedOutputCostsLinesAndTheLogSaysHowMany(t *testing.T) {
	t.Parallel()
	out := &output{results: make(chan error)}
	w := New(out)
	line := []byte(strings.Repeat("x", 1023) + "\n")
	const lines = 3 * size / 1024
	for i := 0; i < lines; i++ {
		if n, err := w.Write(line); n != len(line) || err != nil {
			t.Fatalf("got %d, %v, want %d and no error", n, err, len(line))
		}
	}
	w.Close(time.Millisecond) // returns although nothing can be written
	close(out.results)
	<-w.done

	written, dropped := bytes.Count(out.Bytes(), line), 0.0
	warnings := harness.LogLines(out.String(), warning)
	for _, record := range warnings {
		if record["level"] != "WARN" {
			t.Errorf("got a warning at the level %v", record["level"])
		}
		lost, _ := record["lines"].(float64)
		dropped += lost
	}
	if dropped < size/1024 || float64(written)+dropped != lines {
		t.Errorf("%d lines were written and %v reported as dropped, want %d in all, and at least %d dropped",
			written, dropped, lines, size/1024)
	}
	if got := bytes.Count(out.Bytes(), []byte("\n")); got != written+len(warnings) {
		t.Errorf("got %d lines, want %d written and %d warnings", got, written, len(warnings))
	}
	if out.writes > 8 {
		t.Errorf("got %d writes, want many lines in each", out.writes)
	}
}

func TestLinesThatCannotBeWrittenAreCounted(t *testing.T) {
	t.Parallel()
	out := &output{results: make(chan error)}
	w := New(out)
	full := errors.New("no space left on device")
	io.WriteString(w, "lost 1\n")
	out.results <- full
	io.WriteString(w, "lost 2\n")
	out.results <- full
	io.WriteString(w, "kept 1\n")
	out.results <- nil
	io.WriteString(w, "kept 2\n")
	close(out.results)
	w.Close(time.Minute)
	got := out.String()
	if !strings.HasPrefix(got, "kept 1\n{") || !strings.HasSuffix(got, `"lines":2}`+"\nkept 2\n") {
		t.Errorf("got %q, want both lines that were kept, and between them one warning of 2 lines", got)
	}
}
