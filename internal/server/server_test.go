package server

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

const (
	request     = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
	slowRequest = "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"
	postHeader  = "POST / HTTP/1.1\r\nHost: localhost\r\n"
	largeSize   = 32 << 10
	answered    = "no request left" // why a stop ends
)

// testServer serves on a real socket as Server.Run does. /slow answers when the test says so, /echo with the request's
// body, and /large with more than the kernel takes for a client that has a small buffer and does not read.
type testServer struct {
	*listener
	address string
	log     *harness.Buffer
	entered chan struct{} // receives when a request for /slow has reached its handler
	release chan struct{} // closed or sent to, to let that handler go on
}

func startServer(t testing.TB, slots int) *testServer {
	t.Helper()
	s := &testServer{
		log:     &harness.Buffer{},
		entered: make(chan struct{}, 100),
		release: make(chan struct{}),
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := []byte("done")
		switch r.URL.Path {
		case "/slow":
			s.entered <- struct{}{}
			<-s.release
		case "/echo":
			body, _ = io.ReadAll(r.Body)
		case "/large":
			w.Write(make([]byte, largeSize))
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.Write(body)
	})
	log := slog.New(slog.NewJSONHandler(s.log, nil))
	tcp, err := Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.listener, s.address = newListener(tcp, slots, log), tcp.Addr().String()
	server := Server{Handler: handler, Log: log, Draining: new(atomic.Bool)}.httpServer(s.listener)
	go server.Serve(s.listener)
	t.Cleanup(func() { server.Close() })
	return s
}

// client is one connection to a testServer.
type client struct {
	*net.TCPConn
	reader *bufio.Reader
}

func (s *testServer) dial(t testing.TB) client {
	t.Helper()
	conn := harness.Dial(t, s.address)
	return client{conn, bufio.NewReader(conn)}
}

// receive reads one response, which must be a 200.
func (c client) receive(t testing.TB) *http.Response {
	t.Helper()
	response, body := harness.Receive(t, c.reader, "GET")
	if response.StatusCode != 200 || body != "done" {
		t.Errorf("got %d %q, want 200 done", response.StatusCode, body)
	}
	return response
}

// get sends a request and reads the response.
func (c client) get(t testing.TB) *http.Response {
	t.Helper()
	harness.Write(t, c, request)
	return c.receive(t)
}

// waitFor waits until n connections are in that phase.
func (s *testServer) waitFor(t testing.TB, n int, p phase) {
	t.Helper()
	harness.WaitFor(t, "the connections", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		in := 0
		for c := range s.conns {
			if c.phase() == p {
				in++
			}
		}
		return in == n
	})
}

// dialIdle opens n connections and waits until the server waits for their requests.
func (s *testServer) dialIdle(t testing.TB, n int) {
	t.Helper()
	for i := 0; i < n; i++ {
		s.dial(t)
	}
	s.waitFor(t, n, idle)
}

// waited makes it so that checks have found all connections in their phases for so long.
func (s *testServer) waited(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.check(time.Now())
		c.since = time.Now().Add(-d)
	}
}

// stop stops in the background. It returns what receives the reason when the stop ends.
func (s *testServer) stop(timeout time.Duration) <-chan string {
	reason := make(chan string, 1)
	server := Server{Log: s.listener.log, ShutdownTimeout: timeout}
	go func() { reason <- server.stop(s.listener, nil) }()
	return reason
}

func TestStopWaitsForRequestsInFlight(t *testing.T) {
	t.Parallel()
	const twice = request + request
	for name, test := range map[string]struct {
		sent, rest string
		phase      phase
		responses  int // to all that is sent
	}{
		"half a request":                    {harness.HalfRequest, harness.RestOfRequest, header, 1},
		"one byte of a request":             {request[:1], request[1:], header, 1},
		"a header without its last byte":    {request[:len(request)-1], "\n", header, 1},
		"half a request behind two":         {twice + harness.HalfRequest, harness.RestOfRequest, header, 3},
		"one byte behind a whole one":       {request + request[:1], request[1:], header, 2},
		"one in its handler and one behind": {slowRequest + request, "", working, 2},
	} {
		test := test
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, 100)
			c := s.dial(t)
			c.get(t) // from now on the connection is not new
			harness.Write(t, c, test.sent)
			s.waitFor(t, 1, test.phase)
			stopped := s.stop(15 * time.Second)
			select {
			case <-stopped:
				t.Fatal("the stop ended while a request was in flight")
			case <-time.After(stopWait + 50*time.Millisecond):
			}
			harness.Write(t, c, test.rest)
			close(s.release)
			for i := 0; i < test.responses; i++ {
				c.receive(t)
			}
			if got := <-stopped; got != answered {
				t.Errorf("the stop ended by %s, want %s", got, answered)
			}
		})
	}
}

// A stop does not wait for the clients, but gives them time to send a first request, or to read the last response.
func TestStopWithoutRequestsInFlight(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		sent  string
		phase phase
	}{
		"a new connection":    {"", idle},
		"idle":                {request, idle},
		"a body that is late": {postHeader + "Content-Length: 10\r\n\r\n", closing},
	} {
		test := test
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, 100)
			c := s.dial(t)
			harness.Write(t, c, test.sent)
			if test.sent != "" {
				c.receive(t)
			}
			s.waitFor(t, 1, test.phase)
			s.waited(stopWait)
			began := time.Now()
			if got := <-s.stop(15 * time.Second); got != answered {
				t.Errorf("the stop ended by %s, want %s", got, answered)
			}
			if took := time.Since(began); took < stopWait || took > stopWait+4*time.Second {
				t.Errorf("the stop took %v, want about %v", took, stopWait)
			}
			if test.sent == "" {
				c.get(t) // the server is still there; only the listener is closed
			}
		})
	}
}

func TestStopWaitsAnewAfterEachRequest(t *testing.T) {
	t.Parallel()
	s := startServer(t, 100)
	s.dialIdle(t, 1)
	c := s.dial(t)
	c.get(t)
	stopped := s.stop(15 * time.Second)
	time.Sleep(stopWait / 2)
	c.get(t)
	began := time.Now()
	if got := <-stopped; got != answered || time.Since(began) < stopWait-50*time.Millisecond {
		t.Errorf("the stop ended by %s, %v after the last request, want %s and %v", got, time.Since(began), answered, stopWait)
	}
}

func TestStopReturnsTheRequestsInFlightWhenItsTimeIsOver(t *testing.T) {
	t.Parallel()
	s := startServer(t, 100)
	for _, sent := range []string{"GET / HT", "G", slowRequest, ""} {
		harness.Write(t, s.dial(t), sent)
	}
	s.dial(t).get(t)
	s.waitFor(t, 2, header)
	<-s.entered
	s.waitFor(t, 2, idle)
	got := <-s.stop(time.Millisecond)
	if _, inFlight, _ := s.census(); got != "the timeout" || inFlight != 3 {
		t.Errorf("the stop ended by %s with %d requests in flight, want the timeout and 3", got, inFlight)
	}
}

func TestStopWaitsForTheConnectionThatWaitsForASlot(t *testing.T) {
	t.Parallel()
	s := startServer(t, 1)
	harness.Write(t, s.dial(t), slowRequest)
	<-s.entered
	second := s.dial(t)
	harness.Write(t, second, request)
	harness.WaitFor(t, "the second client to wait", s.waiting.Load)
	stopped := s.stop(15 * time.Second)
	if _, inFlight, _ := s.census(); inFlight != 2 {
		t.Errorf("got %d requests in flight, want 2", inFlight)
	}
	close(s.release)
	second.receive(t)
	if got := <-stopped; got != answered {
		t.Errorf("the stop ended by %s, want %s", got, answered)
	}
}

// Requests that arrive while the server stops are answered, or their connections are not accepted. This is
// for the race detector too.
func TestConnectionsComeAndGoDuringTheStop(t *testing.T) {
	t.Parallel()
	s := startServer(t, 4)
	for i := 0; i < 16; i++ {
		go getRepeatedly(s.address, 20) // fails when the listener closes
	}
	s.dial(t).get(t)
	if got := <-s.stop(15 * time.Second); got != answered {
		t.Errorf("the stop ended by %s, want %s", got, answered)
	}
}

// A body has as long as a header, and a connection with one is closed.
func TestBodyHasItsTime(t *testing.T) {
	t.Parallel()
	c := startServer(t, 1).dial(t)
	began := time.Now()
	harness.Write(t, c, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
	response, body := harness.Receive(t, c.reader, "POST")
	if took := time.Since(began); body != "half" || !response.Close || took < timeLimits[header] {
		t.Errorf("got %q after %v, Close: %t, want the half after %v and a close", body, took, response.Close, timeLimits[header])
	}
}

// The listener may fail for good without being told to stop.
func TestRunReturnsWhyServingFailed(t *testing.T) {
	t.Parallel()
	tcp := harness.Listen(t)
	tcp.Close()
	log := &harness.Buffer{}
	server := Server{Log: slog.New(slog.NewJSONHandler(log, nil)), MaxConnections: 1}
	err := server.Run(tcp, nil)
	line := harness.WaitForLog(t, log, "serving failed", 1)[0]
	if err == nil || line["level"] != "ERROR" || line["error"] != err.Error() {
		t.Errorf("got %v and logged %v, want the same error", err, line)
	}
}
