package process

// These tests need /proc and sh's ulimit.

import (
	"bufio"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

func TestServesWith64FileDescriptors(t *testing.T) {
	t.Parallel()
	p := harness.Prepare(t, []string{"PORT=0"})
	p.Cmd.Path, p.Cmd.Args = "/bin/sh", []string{"sh", "-c", `ulimit -n 64; exec "$0"`, p.Cmd.Path}
	p.Start(t)
	address := net.JoinHostPort("127.0.0.1", harness.WaitForPort(t, p.Stdout))
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
	block := strings.Repeat("x", 64<<10)
	var clients sync.WaitGroup
	for header, piece := range map[string]string{ // of the body, which repeats it
		"Content-Length: 104857600":                         block,
		"Content-Length: 104857600\r\nExpect: 100-continue": block,
		"Transfer-Encoding: chunked":                        "10000\r\n" + block + "\r\n",
		"Transfer-Encoding: chunked\r\nX: y":                "1;" + block, // a chunk extension without end
	} {
		for i := 0; i < 3; i++ {
			header, piece, conn := header, piece, harness.Dial(t, address)
			harness.Write(t, conn, "POST /health HTTP/1.1\r\nHost: localhost\r\n"+header+"\r\n\r\n")
			if response, _ := harness.Receive(t, bufio.NewReader(conn), "POST"); response.StatusCode != 405 {
				t.Errorf("%s: got %d, want 405 before the body", header, response.StatusCode)
			}
			clients.Add(1)
			go func() {
				defer clients.Done()
				for sent := 0; sent < 100<<20; sent += len(piece) {
					if _, err := io.WriteString(conn, piece); err != nil {
						return
					}
				}
				t.Errorf("%s: the service took the whole body", header)
			}()
		}
	}
	clients.Wait()
	grown := harness.Memory(t, p.Cmd.Process.Pid, "RssAnon") - before
	if limit := 4 << 20; grown > limit && !harness.RaceEnabled() {
		t.Errorf("memory grew by %d KB, want %d KB at most", grown/1024, limit/1024)
	}
}

// The service has to ask again and again whether a client that has closed its end has read. Here none reads.
func TestHalfClosedClientsTakeLittleProcessorTime(t *testing.T) {
	t.Parallel()
	request := "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + strings.Repeat("\"", 1000) + "\r\n\r\n"
	took := map[bool]time.Duration{}
	for _, closed := range []bool{false, true} {
		p, address := harness.Launch(t)
		for i := 0; i < 300; i++ {
			conn := harness.Dial(t, address)
			conn.SetReadBuffer(1) // the least there is
			harness.Write(t, conn, strings.Repeat(request, 4))
			if closed {
				conn.CloseWrite()
			}
		}
		time.Sleep(5 * time.Second)
		p.Cmd.Process.Kill()
		p.Cmd.Wait()
		took[closed] = p.Cmd.ProcessState.UserTime() + p.Cmd.ProcessState.SystemTime()
	}
	if took[true] > 3*took[false] {
		t.Errorf("took %v, and %v where clients do not close, want at most three times that", took[true], took[false])
	}
}
