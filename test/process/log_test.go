package process

import (
	"bufio"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"devops-info-service/test/harness"
)

// launch starts the service with its log in a file.
func launch(t *testing.T, log *os.File) (p *harness.Process, address string) {
	t.Helper()
	port := harness.FreePort(t) // because the test may not read the log
	p = harness.Prepare(t, []string{"HOST=127.0.0.1", "PORT=" + port})
	p.Cmd.Stdout = log
	p.Start(t)
	address = net.JoinHostPort("127.0.0.1", port)
	harness.WaitForHealth(t, address)
	return p, address
}

// launchWithPipe starts the service with its log in a pipe, and returns the end to read.
func launchWithPipe(t *testing.T) (p *harness.Process, log *os.File, address string) {
	t.Helper()
	log, output, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	p, address = launch(t, output)
	output.Close()
	return p, log, address
}

// A log that nobody reads costs lines. It holds up no request, no health check and no stop.
func TestLogThatNobodyReads(t *testing.T) {
	t.Parallel()
	const requests = 1000 // of about 1 KB in the log; a pipe holds 64 KiB and the service 512
	for _, reader := range []string{"stops", "ends", "comes back"} {
		reader := reader
		t.Run("the reader "+reader, func(t *testing.T) {
			t.Parallel()
			p, log, address := launchWithPipe(t)
			if reader == "ends" {
				log.Close()
			}
			conn := harness.Dial(t, address)
			received := bufio.NewReader(conn)
			for i := 0; i < requests; i++ {
				harness.Write(t, conn, "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: "+strings.Repeat("x", 2000)+"\r\n\r\n")
				if response, _ := harness.Receive(t, received, "GET"); response.StatusCode != 200 {
					t.Fatalf("request %d: got %d, want 200", i, response.StatusCode)
				}
			}
			if response, _ := harness.Get(t, address, "/health"); response.StatusCode != 200 {
				t.Errorf("/health: got %d, want 200", response.StatusCode)
			}
			if reader == "comes back" {
				text := &harness.Buffer{}
				go io.Copy(text, log)
				line := harness.WaitForLog(t, text, "log lines were dropped, because nobody read the log", 1)[0]
				logged := len(harness.LogLines(text.String(), "request"))
				if lost, _ := line["lines"].(float64); line["level"] != "WARN" || logged+int(lost) != requests || lost < 1 {
					t.Errorf("%d of %d requests were logged, and then %v, want WARN and the number of the others", logged, requests, line)
				}
			}
			p.Signal(t, syscall.SIGTERM)
			if code := p.Wait(t); code != 0 {
				t.Errorf("got exit code %d, want 0", code)
			}
		})
	}
}

// While the log is read, it lacks nothing, also when the service stops at once.
func TestLogIsComplete(t *testing.T) {
	t.Parallel()
	const clients, requests = 8, 500
	check := func(t *testing.T, p *harness.Process, address string, log func() string) {
		var all sync.WaitGroup
		for i := 0; i < clients; i++ {
			conn := harness.Dial(t, address)
			all.Add(1)
			go func() {
				defer all.Done()
				go io.WriteString(conn, strings.Repeat(harness.SmallRequest, requests))
				received := bufio.NewReader(conn)
				for i := 0; i < requests; i++ {
					harness.Receive(t, received, "GET")
				}
			}()
		}
		all.Wait()
		p.Signal(t, syscall.SIGTERM)
		if code := p.Wait(t); code != 0 {
			t.Errorf("got exit code %d, want 0", code)
		}
		text := log()
		if got := len(harness.LogLines(text, "request")); got != clients*requests {
			t.Errorf("got %d requests in the log, want %d", got, clients*requests)
		}
		if len(harness.LogLines(text, "stopped")) != 1 || strings.Count(text, "\n") != clients*requests+4 {
			t.Errorf("want listening, the requests, draining, stopping and stopped in the log")
		}
	}
	t.Run("file", func(t *testing.T) {
		t.Parallel()
		file, err := os.CreateTemp("", "log")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close(); os.Remove(file.Name()) })
		text := func() string {
			content, _ := os.ReadFile(file.Name())
			return string(content)
		}
		p, address := launch(t, file)
		check(t, p, address, text)
	})
	t.Run("pipe", func(t *testing.T) {
		t.Parallel()
		p, log, address := launchWithPipe(t)
		text := make(chan string, 1)
		go func() {
			read, _ := io.ReadAll(log)
			text <- string(read)
		}()
		check(t, p, address, func() string { return <-text })
	})
}
