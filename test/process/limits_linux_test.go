package process

// These tests need /proc and sh's ulimit.

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"os/exec"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

func TestServesWith64FileDescriptors(t *testing.T) {
	t.Parallel()
	p := harness.Prepare(t, []string{"PORT=0"})
	p.Cmd = &exec.Cmd{
		Path: "/bin/sh", Args: []string{"sh", "-c", `ulimit -n 64; exec "$0"`, p.Cmd.Path},
		Env: p.Cmd.Env, Stdout: p.Cmd.Stdout, Stderr: p.Cmd.Stderr,
	}
	p.Start(t)
	address := net.JoinHostPort("127.0.0.1", harness.WaitForPort(t, p.Stdout))
	line := harness.WaitForLog(t, p.Stdout, "listening", 1)[0]
	if n, _ := line["max_connections"].(float64); n < 1 || n >= 64 {
		t.Errorf("got max_connections %v, want fewer than 64", n)
	}
	for i := 0; i < 200; i++ {
		harness.Dial(t, address)
	}
	began := time.Now()
	harness.WaitForHealth(t, address)
	if took := time.Since(began); took > time.Second && !harness.RaceEnabled() {
		t.Errorf("with 200 connections, /health took %v, want a second at most", took)
	}
}

// A body is neither waited for before the response nor kept.
func TestBodiesOf100MBCostUnder4MB(t *testing.T) {
	t.Parallel()
	p, address := harness.Launch(t)
	harness.Get(t, address, "/")
	before := harness.Memory(t, p.Cmd.Process.Pid, "RssAnon")
	block := bytes.Repeat([]byte("x"), 64<<10)
	chunk := append([]byte("10000\r\n"), append(block, "\r\n"...)...)
	for name, test := range map[string]struct {
		header string
		piece  []byte // of the body, which repeats it
	}{
		"a length":                      {"Content-Length: 104857600", block},
		"chunks without end":            {"Transfer-Encoding: chunked", chunk},
		"an expectation of 100":         {"Content-Length: 104857600\r\nExpect: 100-continue", block},
		"a chunk extension without end": {"Transfer-Encoding: chunked\r\nX: y", append([]byte("1;"), block...)},
	} {
		test := test
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			results := make(chan error, 3)
			for i := 0; i < cap(results); i++ {
				conn := harness.Dial(t, address)
				harness.Write(t, conn, "POST /health HTTP/1.1\r\nHost: localhost\r\n"+test.header+"\r\n\r\n")
				if response, _ := harness.Receive(t, bufio.NewReader(conn), "POST"); response.StatusCode != 405 {
					t.Errorf("got %d, want 405 before the body", response.StatusCode)
				}
				go func() { results <- writeUntilClosed(conn, test.piece) }()
			}
			for i := 0; i < cap(results); i++ {
				if err := <-results; err != nil {
					t.Error(err)
				}
				grown := harness.Memory(t, p.Cmd.Process.Pid, "RssAnon") - before
				if limit := 4 << 20; grown > limit && !harness.RaceEnabled() {
					t.Errorf("memory grew by %d KB, want %d KB at most", grown/1024, limit/1024)
				}
			}
		})
	}
}

// writeUntilClosed writes up to 100 MB. It returns an error if the other end takes all of it.
func writeUntilClosed(conn net.Conn, piece []byte) error {
	for sent := 0; sent < 100<<20; {
		n, err := conn.Write(piece)
		if err != nil {
			return nil
		}
		sent += n
	}
	return errors.New("the service took the whole body")
}
