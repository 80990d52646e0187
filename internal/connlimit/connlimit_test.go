package connlimit

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"devops-info-service/internal/httpconn"
	"devops-info-service/test/harness"
)

const request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

const mediumSize = 6 << 10 // bytes of the response to GET /medium, which the kernel takes at once

// testServer is an HTTP server on a real socket whose connections are limited.
type testServer struct {
	*Listener
	address string
	entered chan struct{} // receives when a request for /slow has reached its handler
	release chan struct{} // closed or sent to, to let that handler go on
}

// startServer serves until the test ends, with that many slots. /large has more bytes than the kernel
// takes for a client that does not read.
func startServer(t testing.TB, max int, log io.Writer) *testServer {
	t.Helper()
	tcp := harness.Listen(t)
	s := &testServer{
		Listener: New(tcp, max, slog.New(slog.NewJSONHandler(log, nil))),
		address:  tcp.Addr().String(),
		entered:  make(chan struct{}, 100),
		release:  make(chan struct{}),
	}
	large := make([]byte, 8<<20)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close") // as the service does, which reads no bodies
		}
		switch r.URL.Path {
		case "/slow":
			s.entered <- struct{}{}
			<-s.release
		case "/large":
			w.Write(large)
			return
		case "/medium":
			w.Write(large[:mediumSize])
			return
		}
		io.WriteString(w, "done")
	})}
	served := make(chan error)
	go func() { served <- s.Serve(server) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	return s
}

// client is one connection to a testServer.
type client struct {
	net.Conn
	reader *bufio.Reader
}

func (s *testServer) dial(t testing.TB) client {
	t.Helper()
	conn := harness.Dial(t, s.address)
	return client{conn, bufio.NewReader(conn)}
}

// dialSmall returns a connection whose client's kernel takes only a part of /medium before it is read.
func (s *testServer) dialSmall(t testing.TB) *net.TCPConn {
	t.Helper()
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { // before it connects, because the buffer does not shrink later
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 2048)
		})
	}}
	conn, err := dialer.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(15 * time.Second))
	return conn.(*net.TCPConn)
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

// connections returns the connections in the order in which evict looks at them.
func (s *testServer) connections() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var conns []*conn
	for e := s.conns.Front(); e != nil; e = e.Next() {
		conns = append(conns, e.Value.(*conn))
	}
	return conns
}

// dialIdle opens n connections and waits until each has waited for a request for long enough to be
// evicted.
func (s *testServer) dialIdle(t testing.TB, n int) []client {
	t.Helper()
	clients := make([]client, n)
	for i := range clients {
		clients[i] = s.dial(t)
	}
	s.waitUntilIdle(t, n)
	return clients
}

func (s *testServer) waitUntilIdle(t testing.TB, n int) {
	t.Helper()
	harness.WaitFor(t, "idle connections", func() bool {
		ready := 0
		for _, c := range s.connections() {
			if forClient, since := c.Waiting(); forClient && time.Since(since) > patience {
				ready++
			}
		}
		return ready == n
	})
}

func (s *testServer) waitUntilInFlight(t testing.TB, n int) {
	t.Helper()
	harness.WaitFor(t, fmt.Sprintf("%d requests in flight", n), func() bool { _, inFlight := s.count(); return inFlight == n })
}

func TestMax(t *testing.T) {
	t.Parallel()
	const none = 0
	for name, test := range map[string]struct {
		memory, files int64
		want          int
	}{
		"no limits":                {none, none, maxConnections},
		"1 byte of memory":         {1, none, minConnections},
		"memory of the process":    {processCost, none, minConnections},
		"memory above the floor":   {processCost + (minConnections+1)*connectionCost, none, minConnections + 1},
		"almost one more":          {processCost + (minConnections+2)*connectionCost - 1, none, minConnections + 1},
		"memory below the ceiling": {processCost + (maxConnections-1)*connectionCost, none, maxConnections - 1},
		"memory of the ceiling":    {processCost + maxConnections*connectionCost, none, maxConnections},
		"1 TiB of memory":          {1 << 40, none, maxConnections},
		"64 files":                 {none, 64, 64 - reservedFiles},
		"3 files":                  {none, 3, 1},
		"a million files":          {none, 1 << 20, maxConnections},
		"little of both":           {1, 20, 20 - reservedFiles},
	} {
		t.Run(name, func(t *testing.T) {
			var memory, files *int64
			if test.memory != none {
				memory = &test.memory
			}
			if test.files != none {
				files = &test.files
			}
			if got := Max(memory, files); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

// What Max promises is that the connections' worst cost and the rest stay below the memory limit.
func TestMaxFitsIntoTheMemory(t *testing.T) {
	t.Parallel()
	for memory := int64(16 << 20); memory <= 4<<30; memory += 1 << 20 {
		if n := Max(&memory, nil); int64(n)*connectionCost+processCost > memory {
			t.Fatalf("%d connections do not fit into %d MiB", n, memory>>20)
		}
	}
}

func TestNewClientEvictsOneIdleConnection(t *testing.T) {
	t.Parallel()
	log := &harness.Buffer{}
	s := startServer(t, 8, log)
	idle := s.dialIdle(t, 8)
	if response := s.dial(t).get(t); response.Close {
		t.Error("got Connection: close, want the connection kept, because nobody else waits")
	}
	harness.WaitFor(t, "the first connection to be closed", func() bool { return harness.Closed(idle[0]) })
	for i := 1; i < len(idle); i++ {
		if harness.Closed(idle[i]) {
			t.Errorf("connection %d was closed too", i)
		}
	}
	line := harness.WaitForLog(t, log, "all connection slots are taken; closing connections that complete no requests", 1)[0]
	if line["level"] != "WARN" || line["slots"] != 8.0 {
		t.Errorf("logged %v", line)
	}
}

func TestNobodyIsEvictedWhileSlotsAreFree(t *testing.T) {
	t.Parallel()
	s := startServer(t, 9, io.Discard)
	idle := s.dialIdle(t, 8)
	s.dial(t).get(t)
	for i := range idle {
		if harness.Closed(idle[i]) {
			t.Errorf("connection %d was closed", i)
		}
	}
}

func TestConnectionThatCompletedARequestIsSpared(t *testing.T) {
	t.Parallel()
	s := startServer(t, 3, io.Discard)
	good := s.dial(t)
	good.get(t)
	idle := []client{s.dial(t), s.dial(t)}
	s.waitUntilIdle(t, 3)
	s.dial(t).get(t)
	harness.WaitFor(t, "the first silent connection to be closed", func() bool { return harness.Closed(idle[0]) })
	if harness.Closed(idle[1]) {
		t.Error("the second silent connection was closed too")
	}
	good.get(t) // fails if it was closed
}

func TestEvictClosesFourTimesAsManyEachTime(t *testing.T) {
	t.Parallel()
	s := startServer(t, 100, io.Discard)
	left := 60
	s.dialIdle(t, left)
	for _, n := range []int{1, 4, 16} {
		s.evict()
		left -= n
		harness.WaitFor(t, fmt.Sprintf("%d connections to be left", left), func() bool { return len(s.connections()) == left })
	}
	s.mu.Lock()
	s.evictedAt = s.evictedAt.Add(-time.Second)
	s.mu.Unlock()
	s.evict()
	harness.WaitFor(t, "one more to be closed", func() bool { return len(s.connections()) == left-1 })
}

// The times are given to evictable, because the real ones are too short for a busy machine.
func TestWhenAConnectionIsEvictable(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		prepare   func(*testing.T, *testServer, client)
		forClient bool
		allowed   time.Duration
	}{
		"silent":               {func(*testing.T, *testServer, client) {}, true, patience},
		"idle after a request": {func(t *testing.T, _ *testServer, c client) { c.get(t) }, true, patience},
		"half a header":        {func(t *testing.T, _ *testServer, c client) { harness.Write(t, c, harness.HalfRequest) }, true, patience},
		"in a handler": {func(t *testing.T, s *testServer, c client) {
			harness.Write(t, c, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
			<-s.entered
		}, false, stalledAfter},
		"a body that does not come": {func(t *testing.T, _ *testServer, c client) {
			harness.Write(t, c, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n")
			harness.Receive(t, c.reader, "POST")
		}, true, patience},
	} {
		test := test
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, 1, io.Discard)
			t.Cleanup(func() { close(s.release) })
			test.prepare(t, s, s.dial(t))
			var since time.Time
			harness.WaitFor(t, "the connection", func() bool {
				conns := s.connections()
				if len(conns) != 1 {
					return false
				}
				forClient, began := conns[0].Waiting()
				since = began
				return forClient == test.forClient
			})
			c := s.connections()[0]
			if c.evictable(since.Add(test.allowed - 1)) {
				t.Errorf("before %v: got true, want false", test.allowed)
			}
			if !c.evictable(since.Add(test.allowed)) {
				t.Errorf("after %v: got false, want true", test.allowed)
			}
		})
	}
}

func TestConnectionWithoutASlotIsNotEvictable(t *testing.T) {
	t.Parallel()
	c := conn{Conn: httpconn.New(nil)}
	if c.evictable(time.Now()) {
		t.Error("got true before the first Read, want false")
	}
}

func TestResponsesCloseConnectionsOnlyWhileSomebodyWaits(t *testing.T) {
	t.Parallel()
	s := startServer(t, 1, io.Discard)
	first := s.dial(t)
	if response := first.get(t); response.Close {
		t.Error("alone: got Connection: close")
	}
	// Two requests at once: the second is read when the first, which starts alone, is done.
	harness.Write(t, first, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"+request)
	<-s.entered
	second := s.dial(t)
	harness.WaitFor(t, "the second client to wait", s.waiting.Load)
	s.release <- struct{}{}
	if response := first.receive(t); response.Close {
		t.Error("the request that came before the second client: got Connection: close")
	}
	if response := first.receive(t); !response.Close {
		t.Error("while the second client waits: got no Connection: close")
	}
	if response := second.get(t); response.Close {
		t.Error("alone again: got Connection: close")
	}
}

func TestResponseThatNobodyReadsIsEvicted(t *testing.T) {
	t.Parallel()
	s := startServer(t, 1, io.Discard)
	began := time.Now()
	stalled := s.dial(t)
	harness.Write(t, stalled, "GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
	s.dial(t).get(t)
	if took := time.Since(began); took < stalledAfter {
		t.Errorf("the next client had its response after %v, want %v for the one that does not read", took, stalledAfter)
	}
}

func TestDrainWaitsUntilTheClientHasTheLastResponse(t *testing.T) {
	t.Parallel()
	s := startServer(t, 100, io.Discard)
	c := s.dialSmall(t)
	harness.Write(t, c, "GET /medium HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	reader := bufio.NewReaderSize(c, 16)
	if _, err := reader.Peek(1); err != nil { // then the whole response is with the kernel
		t.Fatal(err)
	}
	result := s.drain(t, context.Background())
	select {
	case <-result:
		t.Fatal("Drain returned before the client had read the response")
	default:
	}
	if response, body := harness.Receive(t, reader, "GET"); response.StatusCode != 200 || len(body) != mediumSize {
		t.Errorf("got %d and %d bytes, want 200 and %d", response.StatusCode, len(body), mediumSize)
	}
	if n := <-result; n != 0 {
		t.Errorf("Drain returned %d, want 0", n)
	}
}

// A log that nobody reads must not keep new clients out.
func TestBlockedLogDoesNotStopTheListener(t *testing.T) {
	t.Parallel()
	reader, writer := io.Pipe()
	defer reader.Close()
	s := startServer(t, 2, writer)
	s.dialIdle(t, 2)
	s.dial(t).get(t)
	s.dial(t).get(t)
	s.dial(t).get(t)
}

// More clients than slots take turns, because each reconnects when it is told to. None of their
// requests should fail; 2 in 1,000 may, because on a busy machine a client may get no processor time
// for longer than the others are patient.
func TestManyGoodClientsLoseNoRequest(t *testing.T) {
	t.Parallel()
	const slots, clients, requests = 8, 64, 50
	s := startServer(t, slots, io.Discard)
	failures := make(chan error, clients)
	for i := 0; i < clients; i++ {
		go func() { failures <- getRepeatedly(s.address, requests) }()
	}
	failed := 0
	for i := 0; i < clients; i++ {
		if err := <-failures; err != nil {
			failed++
			t.Logf("a request failed: %v", err)
		}
	}
	if most := clients * requests * 2 / 1000; failed > most {
		t.Errorf("%d of %d requests failed, want at most %d", failed, clients*requests, most)
	}
}

// getRepeatedly sends requests one after the other. It keeps its connection until a response closes
// it, and repeats no request.
func getRepeatedly(address string, requests int) error {
	var conn net.Conn
	var reader *bufio.Reader
	for i := 0; i < requests; i++ {
		if conn == nil {
			var err error
			if conn, err = net.Dial("tcp", address); err != nil {
				return err
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(time.Minute))
			reader = bufio.NewReader(conn)
		}
		if _, err := io.WriteString(conn, request); err != nil {
			return fmt.Errorf("request %d: %w", i, err)
		}
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			return fmt.Errorf("request %d: %w", i, err)
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return fmt.Errorf("request %d: %w", i, err)
		}
		if response.Close {
			conn.Close()
			conn = nil
		}
	}
	return nil
}

// drain calls Drain in the background and returns what receives its result. It returns when the
// listener is closed.
func (s *testServer) drain(t testing.TB, ctx context.Context) <-chan int {
	t.Helper()
	result := make(chan int, 1)
	go func() { result <- s.Drain(ctx) }()
	harness.WaitFor(t, "the listener to close", func() bool { return harness.Refused(s.address) })
	return result
}

func TestDrainWaitsForRequestsInFlight(t *testing.T) {
	t.Parallel()
	const half, rest = "GET / HTTP/1.1\r\nHost: local", "host\r\n\r\n"
	for name, test := range map[string]struct {
		begin func(t *testing.T, s *testServer, c client)
		end   func(t *testing.T, s *testServer, c client)
	}{
		"half a request": {
			func(t *testing.T, s *testServer, c client) { harness.Write(t, c, half) },
			func(t *testing.T, s *testServer, c client) { harness.Write(t, c, rest) },
		},
		"one byte of a request": {
			func(t *testing.T, s *testServer, c client) { harness.Write(t, c, "G") },
			func(t *testing.T, s *testServer, c client) { harness.Write(t, c, request[1:]) },
		},
		"a header without its last byte": {
			func(t *testing.T, s *testServer, c client) { harness.Write(t, c, request[:len(request)-1]) },
			func(t *testing.T, s *testServer, c client) { harness.Write(t, c, "\n") },
		},
		"half a request behind a whole one": {
			func(t *testing.T, s *testServer, c client) {
				harness.Write(t, c, request+half)
				c.receive(t)
			},
			func(t *testing.T, s *testServer, c client) { harness.Write(t, c, rest) },
		},
		"a request in its handler": {
			func(t *testing.T, s *testServer, c client) {
				harness.Write(t, c, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
				<-s.entered
			},
			func(t *testing.T, s *testServer, c client) { close(s.release) },
		},
		"a request behind one in its handler": {
			func(t *testing.T, s *testServer, c client) {
				harness.Write(t, c, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"+request)
				<-s.entered
			},
			func(t *testing.T, s *testServer, c client) {
				close(s.release)
				c.receive(t)
			},
		},
	} {
		test := test
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, 100, io.Discard)
			c := s.dial(t)
			c.get(t) // from now on the connection is not new
			s.waitUntilInFlight(t, 0)
			test.begin(t, s, c)
			s.waitUntilInFlight(t, 1)
			ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
			defer cancel()
			result := s.drain(t, ctx)
			select {
			case n := <-result:
				t.Fatalf("Drain returned %d while a request was in flight", n)
			default:
			}
			test.end(t, s, c)
			c.receive(t)
			if n := <-result; n != 0 || ctx.Err() != nil {
				t.Errorf("Drain returned %d (%v), want 0", n, ctx.Err())
			}
		})
	}
}

func TestDrainWaitsForTheFirstRequestOfANewConnection(t *testing.T) {
	t.Parallel()
	s := startServer(t, 100, io.Discard)
	c := s.dialIdle(t, 1)[0]
	began := time.Now()
	if n := <-s.drain(t, context.Background()); n != 0 {
		t.Errorf("got %d, want 0", n)
	}
	if took := time.Since(began); took < firstRequestWait {
		t.Errorf("Drain waited for %v, want %v", took, firstRequestWait)
	}
	c.get(t) // the server is still there; only the listener is closed
}

func TestDrainDoesNotWaitForConnectionsWithoutARequest(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ sent, method string }{
		"idle":                {request, "GET"},
		"a stray empty line":  {request + "\r\n", "GET"},
		"stray empty lines":   {request + "\r\n\n\r\n", "GET"},
		"an unread body":      {"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n", "POST"},
		"half an unread body": {"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf", "POST"},
		"a chunk without end": {"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhalf\n", "POST"},
	} {
		test := test
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, 100, io.Discard)
			c := s.dial(t)
			harness.Write(t, c, test.sent)
			harness.Receive(t, c.reader, test.method)
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if n := <-s.drain(t, ctx); n != 0 || ctx.Err() != nil {
				t.Errorf("Drain returned %d (%v), want 0", n, ctx.Err())
			}
		})
	}
}

func TestDrainReturnsTheRequestsInFlightWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	s := startServer(t, 100, io.Discard)
	clients := []client{s.dial(t), s.dial(t), s.dial(t)}
	for _, c := range clients {
		c.get(t)
	}
	s.waitUntilInFlight(t, 0)
	for _, c := range clients[1:] {
		harness.Write(t, c, "GET / HT")
	}
	s.waitUntilInFlight(t, 2)
	ctx, cancel := context.WithCancel(context.Background())
	result := s.drain(t, ctx)
	cancel()
	if n := <-result; n != 2 {
		t.Errorf("got %d, want 2", n)
	}
}

// Serve and Drain may run while connections come, end and are evicted. This is for the race detector.
func TestConnectionsComeAndGoDuringTheDrain(t *testing.T) {
	t.Parallel()
	s := startServer(t, 4, io.Discard)
	var clients sync.WaitGroup
	for i := 0; i < 16; i++ {
		clients.Add(1)
		go func() {
			defer clients.Done()
			getRepeatedly(s.address, 20) // fails when the listener closes
		}()
	}
	s.dial(t).get(t)
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if n := <-s.drain(t, ctx); n != 0 {
		t.Errorf("got %d, want 0", n)
	}
	clients.Wait()
}
