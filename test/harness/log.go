package harness

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
)

// Buffer collects a log that the service writes while the test reads it.
type Buffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// LogLines returns the lines of a log that have this message, as their attributes.
func LogLines(log, message string) []map[string]any {
	var found []map[string]any
	for _, text := range strings.Split(log, "\n") {
		var line map[string]any
		if json.Unmarshal([]byte(text), &line) == nil && line["msg"] == message {
			found = append(found, line)
		}
	}
	return found
}

// WaitForLog waits until a log has at least n lines with this message, and returns all of them.
func WaitForLog(t testing.TB, log fmt.Stringer, message string, n int) []map[string]any {
	t.Helper()
	var found []map[string]any
	WaitFor(t, fmt.Sprintf("%d log lines %q", n, message), func() bool {
		found = LogLines(log.String(), message)
		return len(found) >= n
	})
	return found
}

// WaitForPort waits until the service logs that it listens, and returns its port.
func WaitForPort(t testing.TB, log fmt.Stringer) string {
	t.Helper()
	address, _ := WaitForLog(t, log, "listening", 1)[0]["address"].(string)
	_, port, err := net.SplitHostPort(address)
	if err != nil || port == "0" {
		t.Fatalf("the log line \"listening\" has the address %q", address)
	}
	return port
}
