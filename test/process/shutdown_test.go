package process

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

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
		p, address := harness.Launch(t)
		conn, reader := sendHalf(t, address)
		p.Signal(t, signal)
		harness.WaitFor(t, "the listener to close", func() bool { return harness.Refused(address) })
		harness.Write(t, conn, harness.RestOfRequest)
		response, _ := harness.Receive(t, reader, "GET")
		if response.StatusCode != 200 || !response.Close {
			t.Errorf("%v: got %d, close %v, want 200 and Connection: close", signal, response.StatusCode, response.Close)
		}
		if code := p.Wait(t); code != 0 {
			t.Errorf("%v: got exit code %d, want 0; log:\n%s%s", signal, code, p.Stdout, p.Stderr)
		}
		for _, step := range []string{"draining", "stopping", "stopped"} {
			if n := len(harness.LogLines(p.Stdout.String(), step)); n != 1 {
				t.Errorf("%v: got %d log lines %q, want 1", signal, n, step)
			}
		}
	}
}

func TestRequestsAreCut(t *testing.T) {
	t.Parallel()
	for reason, timeout := range map[string]string{"the timeout": "200ms", "a second signal: interrupt": "1h"} {
		p, address := harness.Launch(t, "SHUTDOWN_TIMEOUT="+timeout)
		_, reader := sendHalf(t, address)
		p.Signal(t, syscall.SIGTERM)
		if timeout == "1h" {
			harness.WaitForLog(t, p.Stdout, "stopping", 1)
			p.Signal(t, os.Interrupt)
		}
		if code := p.Wait(t); code != 1 {
			t.Errorf("%s: got exit code %d, want 1", reason, code)
		}
		if _, err := reader.ReadByte(); err == nil {
			t.Errorf("%s: half a request was answered", reason)
		}
		line := harness.WaitForLog(t, p.Stdout, "stopped, with requests cut", 1)[0]
		if line["level"] != "ERROR" || line["requests_cut"] != 1.0 || line["reason"] != reason {
			t.Errorf("%s: logged %v", reason, line)
		}
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
		response, body := harness.Get(t, address, path) // on a new connection
		if response.StatusCode != want || !response.Close {
			t.Errorf("%s: got %d, close %v, want %d and Connection: close", path, response.StatusCode, response.Close, want)
		}
		if path == "/health" && !strings.HasPrefix(body, `{"status":"draining","timestamp":"`) {
			t.Errorf("got %s, want the status draining", body)
		}
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
	if requests := fmt.Sprint(harness.LogLines(p.Stdout.String(), "request")); strings.Contains(requests, "/health") {
		t.Errorf("health checks while draining are logged, not only at DEBUG: %s", requests)
	}
}
