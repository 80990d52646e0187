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

// A log that nobody reads holds up no request, no health check and no stop.
func TestLogThatNobodyReads(t *testing.T) {
	t.Parallel()
	for _, reader := range []string{"the reader stops", "the reader ends"} {
		log, output, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		p, address := launch(t, output)
		output.Close()
		if reader == "the reader ends" {
			log.Close()
		}
		conn := harness.Dial(t, address)
		received := bufio.NewReader(conn)
		for i := 0; i < 1000; i++ { // about 1 KB each in the log; a pipe holds 64 KiB and the service 512
			harness.Write(t, conn, "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: "+strings.Repeat("x", 2000)+"\r\n\r\n")
			if response, _ := harness.Receive(t, received, "GET"); response.StatusCode != 200 {
				t.Fatalf("%s: request %d: got %d, want 200", reader, i, response.StatusCode)
			}
		}
		if !harness.Healthy(address) {
			t.Errorf("%s: /health does not answer 200", reader)
		}
		p.Signal(t, syscall.SIGTERM)
		if code := p.Wait(t); code != 0 {
			t.Errorf("%s: got exit code %d, want 0", reader, code)
		}
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
