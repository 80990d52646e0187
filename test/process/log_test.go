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

// launch starts the service with its log in a file or a pipe.
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

// A log that nobody reads costs lines. It holds up no request, no health check and no stop.
func TestLogThatNobodyReads(t *testing.T) {
	t.Parallel()
	const requests = 1000 // of about 1 KB in the log; a pipe holds 64 KiB and the service 512
	for _, reader := range []string{"stops", "ends", "comes back"} {
		reader := reader
		t.Run("the reader "+reader, func(t *testing.T) {
			t.Parallel()
			log, output, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			p, address := launch(t, output)
			output.Close()
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
	file, err := os.CreateTemp("", "log")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { file.Close(); os.Remove(file.Name()) }()
	toFile, address := launch(t, file)
	toPipe, pipeAddress := harness.Launch(t)
	for _, test := range []struct {
		name    string
		process *harness.Process
		address string
	}{{"file", toFile, address}, {"pipe", toPipe, pipeAddress}} {
		var all sync.WaitGroup
		for i := 0; i < clients; i++ {
			conn := harness.Dial(t, test.address)
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
		test.process.Signal(t, syscall.SIGTERM)
		if code := test.process.Wait(t); code != 0 {
			t.Errorf("%s: got exit code %d, want 0", test.name, code)
		}
		log := test.process.Stdout.String()
		if test.name == "file" {
			content, _ := os.ReadFile(file.Name())
			log = string(content)
		}
		got, stopped := len(harness.LogLines(log, "request")), len(harness.LogLines(log, "stopped"))
		if got != clients*requests || stopped != 1 {
			t.Errorf("%s: got %d requests and %d times stopped in the log, want %d and 1", test.name, got, stopped, clients*requests)
		}
	}
}
