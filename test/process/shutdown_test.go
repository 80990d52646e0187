package process

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

// sendHalf sends half a request for / on a new connection that has carried a whole one. The service
// has read the half when sendHalf returns, because both are in one packet.
func sendHalf(t *testing.T, address string) (conn net.Conn, reader *bufio.Reader) {
	t.Helper()
	conn = harness.Dial(t, address)
	reader = bufio.NewReader(conn)
	harness.Write(t, conn, harness.SmallRequest+harness.HalfRequest)
	harness.Receive(t, reader, "GET")
	return conn, reader
}

func TestSignalLetsRequestsInFlightFinish(t *testing.T) {
	t.Parallel()
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		signal := signal
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			p, address := harness.Launch(t)
			conn, reader := sendHalf(t, address)
			p.Signal(t, signal)
			harness.WaitFor(t, "the listener to close", func() bool { return harness.Refused(address) })
			harness.Write(t, conn, harness.RestOfRequest)
			response, _ := harness.Receive(t, reader, "GET")
			if response.StatusCode != 200 || !response.Close {
				t.Errorf("got %d, close %v, want 200 and Connection: close", response.StatusCode, response.Close)
			}
			if code := p.Wait(t); code != 0 {
				t.Errorf("got exit code %d, want 0; log:\n%s%s", code, p.Stdout, p.Stderr)
			}
			for _, step := range []string{"draining", "stopping", "stopped"} {
				if n := len(harness.LogLines(p.Stdout.String(), step)); n != 1 {
					t.Errorf("got %d log lines %q, want 1", n, step)
				}
			}
		})
	}
}

func TestSignalStopsAnIdleProcess(t *testing.T) {
	t.Parallel()
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		signal := signal
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			p, address := harness.Launch(t)
			harness.Get(t, address, "/")
			p.Signal(t, signal)
			if code := p.Wait(t); code != 0 {
				t.Errorf("got exit code %d, want 0; log:\n%s%s", code, p.Stdout, p.Stderr)
			}
			harness.WaitForLog(t, p.Stdout, "stopped", 1)
		})
	}
}

func TestShutdownTimeoutCutsRequests(t *testing.T) {
	t.Parallel()
	p, address := harness.Launch(t, "SHUTDOWN_TIMEOUT=200ms")
	conn, reader := sendHalf(t, address)
	p.Signal(t, syscall.SIGTERM)
	if code := p.Wait(t); code != 1 {
		t.Errorf("got exit code %d, want 1", code)
	}
	if _, err := reader.ReadByte(); err == nil {
		t.Error("half a request was answered")
	}
	conn.Close()
	line := harness.WaitForLog(t, p.Stdout, "stopped, with requests cut", 1)[0]
	if line["level"] != "ERROR" || line["requests_cut"] != 1.0 || line["reason"] != "the timeout" {
		t.Errorf("logged %v", line)
	}
}

func TestDraining(t *testing.T) {
	t.Parallel()
	p, address := harness.Launch(t, "SHUTDOWN_DELAY=1h") // ended by a second signal
	_, port, _ := net.SplitHostPort(address)

	idle := harness.Dial(t, address) // a keep-alive connection that is idle when the signal comes
	reader := bufio.NewReader(idle)
	harness.Write(t, idle, harness.SmallRequest)
	if response, _ := harness.Receive(t, reader, "GET"); response.Close {
		t.Error("before the signal: got Connection: close")
	}

	p.Signal(t, syscall.SIGTERM)
	harness.WaitForLog(t, p.Stdout, "draining", 1)
	for path, want := range map[string]int{"/": 200, "/health": 503, "/nope": 404} {
		t.Run(path, func(t *testing.T) {
			response, body := harness.Get(t, address, path) // on a new connection
			if response.StatusCode != want || !response.Close {
				t.Errorf("got %d, close %v, want %d and Connection: close", response.StatusCode, response.Close, want)
			}
			if path == "/health" && !strings.HasPrefix(body, `{"status":"draining","timestamp":"`) {
				t.Errorf("got %s, want the status draining", body)
			}
		})
	}
	check, code := harness.Run(t, []string{"PORT=" + port}, "-healthcheck")
	if code != 1 || !strings.Contains(check.Stderr.String(), "answered 503") {
		t.Errorf("-healthcheck: got exit code %d and %q, want 1 and 503", code, check.Stderr)
	}
	harness.Write(t, idle, harness.SmallRequest)
	if response, _ := harness.Receive(t, reader, "GET"); response.StatusCode != 200 || !response.Close {
		t.Errorf("on the idle connection: got %d, close %v, want 200 and Connection: close", response.StatusCode, response.Close)
	}
	// Until the service has closed the connection, the request may be in flight.
	if _, err := reader.ReadByte(); err != io.EOF {
		t.Errorf("on the idle connection: got the error %v, want %v", err, io.EOF)
	}
	p.Signal(t, os.Interrupt)
	if code := p.Wait(t); code != 0 {
		t.Errorf("got exit code %d, want 0; log:\n%s", code, p.Stdout)
	}
}

// Clients that request /health until they get 503, as load balancers do, on connections of their own
// and on kept ones, lose no request.
func TestDrainingLosesNoRequest(t *testing.T) {
	t.Parallel()
	p, address := harness.Launch(t, "SHUTDOWN_DELAY=1s")
	var responses atomic.Int64
	results := make(chan error, 8)
	for i := 0; i < cap(results); i++ {
		keep := i%2 == 0
		go func() {
			client := http.Client{Transport: &http.Transport{DisableKeepAlives: !keep}, Timeout: 10 * time.Second}
			results <- requestUntilDraining(&client, "http://"+address+"/health", &responses)
		}()
	}
	harness.WaitFor(t, "some responses", func() bool { return responses.Load() > 500 })
	p.Signal(t, syscall.SIGTERM)
	for i := 0; i < cap(results); i++ {
		if err := <-results; err != nil {
			t.Errorf("a request was lost: %v", err)
		}
	}
	t.Logf("%d requests were answered", responses.Load())
	if code := p.Wait(t); code != 0 {
		t.Errorf("got exit code %d, want 0; log:\n%s", code, p.Stdout)
	}
}

// requestUntilDraining sends requests until the response is 503 and counts the responses.
func requestUntilDraining(client *http.Client, url string, responses *atomic.Int64) error {
	for {
		response, err := client.Get(url)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		responses.Add(1)
		switch {
		case err != nil:
			return err
		case response.StatusCode == http.StatusServiceUnavailable:
			return nil
		case response.StatusCode != http.StatusOK:
			return fmt.Errorf("status %d", response.StatusCode)
		}
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	t.Run("with nothing in flight", func(t *testing.T) {
		t.Parallel()
		p, _ := harness.Launch(t, "SHUTDOWN_DELAY=1h")
		p.Signal(t, syscall.SIGTERM)
		harness.WaitForLog(t, p.Stdout, "draining", 1)
		p.Signal(t, os.Interrupt)
		if code := p.Wait(t); code != 0 {
			t.Errorf("got exit code %d, want 0", code)
		}
	})
	t.Run("with a request in flight", func(t *testing.T) {
		t.Parallel()
		p, address := harness.Launch(t, "SHUTDOWN_TIMEOUT=1h")
		sendHalf(t, address)
		p.Signal(t, syscall.SIGTERM)
		harness.WaitForLog(t, p.Stdout, "stopping", 1)
		p.Signal(t, os.Interrupt)
		if code := p.Wait(t); code != 1 {
			t.Errorf("got exit code %d, want 1", code)
		}
		line := harness.WaitForLog(t, p.Stdout, "stopped, with requests cut", 1)[0]
		if line["level"] != "ERROR" || line["requests_cut"] != 1.0 || line["reason"] != "a second signal: interrupt" {
			t.Errorf("logged %v", line)
		}
	})
}

// startWithPipe starts a process that listens on port and writes its log to a pipe. It returns the end of
// the pipe to read, which closes when the test ends, and the address.
func startWithPipe(t *testing.T, p *harness.Process, port string) (reader *os.File, address string) {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })
	p.Cmd.Stdout = writer
	p.Start(t)
	writer.Close()
	address = net.JoinHostPort("127.0.0.1", port)
	harness.WaitForHealth(t, address)
	return reader, address
}

// The process that reads the log may stop reading, or end.
func TestLogThatNobodyReads(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"the reader stops", "the reader ends"} {
		ends := name == "the reader ends"
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			port := harness.FreePort(t)
			p := harness.Prepare(t, []string{"HOST=127.0.0.1", "PORT=" + port, "SHUTDOWN_DELAY=100ms"})
			reader, address := startWithPipe(t, p, port)
			if ends {
				reader.Close()
			}
			request := "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + strings.Repeat("x", 8<<10) + "\r\n\r\n"
			for i := 0; i < 100; i++ { // a pipe holds 64 KiB
				conn := harness.Dial(t, address)
				harness.Write(t, conn, request)
				if ends {
					harness.Receive(t, bufio.NewReader(conn), "GET")
				}
			}
			if response, _ := harness.Get(t, address, "/health"); response.StatusCode != 200 {
				t.Errorf("/health: got %d, want 200", response.StatusCode)
			}
			p.Signal(t, syscall.SIGTERM)
			want := 0
			if !ends { // the requests above cannot finish, so it takes a second signal
				harness.WaitFor(t, "the listener to close", func() bool { return harness.Refused(address) })
				p.Signal(t, os.Interrupt)
				want = 1
			}
			if code := p.Wait(t); code != want {
				t.Errorf("got %v, want exit code %d", p.Cmd.ProcessState, want)
			}
		})
	}
}

// More requests than connections must not wait for the log, and the log must say what it lacks.
func TestLogThatNobodyReadsDoesNotHideHealth(t *testing.T) {
	t.Parallel()
	port := harness.FreePort(t)
	p := harness.Prepare(t, []string{"HOST=127.0.0.1", "PORT=" + port})
	p.LimitFiles(64)
	reader, address := startWithPipe(t, p, port)
	request := "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + strings.Repeat("x", 8<<10) + "\r\n\r\n"
	for i := 0; i < 200; i++ { // a pipe holds 64 KiB, and the service 48 connections
		harness.Write(t, harness.Dial(t, address), request)
	}
	if response, _ := harness.Get(t, address, "/health"); response.StatusCode != 200 {
		t.Errorf("/health: got %d, want 200", response.StatusCode)
	}
	log := &harness.Buffer{}
	go io.Copy(log, reader)
	line := harness.WaitForLog(t, log, "requests were not logged, because nobody read the log", 1)[0]
	if n, _ := line["requests"].(float64); line["level"] != "WARN" || n < 1 {
		t.Errorf("logged %v, want WARN and the number of requests", line)
	}
}

// SHUTDOWN_TIMEOUT=0s makes the exit code tell what the stop would have waited for.
func TestStopNeedsNoTime(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ sent, method string }{
		"idle":           {harness.SmallRequest, "GET"},
		"a stray byte":   {harness.SmallRequest + "\r\n", "GET"},
		"an unread body": {"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n", "POST"},
	} {
		test := test
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// The delay is for the service to note that the kernel has taken its response.
			p, address := harness.Launch(t, "SHUTDOWN_DELAY=300ms", "SHUTDOWN_TIMEOUT=0s")
			conn := harness.Dial(t, address)
			harness.Write(t, conn, test.sent)
			harness.Receive(t, bufio.NewReader(conn), test.method)
			p.Signal(t, syscall.SIGTERM)
			if code := p.Wait(t); code != 0 {
				t.Errorf("got exit code %d, want 0; log:\n%s", code, p.Stdout)
			}
		})
	}
}
