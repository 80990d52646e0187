package server

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

func TestMaxConnections(t *testing.T) {
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
		"1 TiB of memory":          {1 << 40, none, maxConnections},
		"64 files":                 {none, 64, 64 - reservedFiles},
		"3 files":                  {none, 3, 1},
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
			if got := MaxConnections(memory, files); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

func TestNewClientEvictsOneIdleConnection(t *testing.T) {
	t.Parallel()
	s := startServer(t, 8)
	idle := s.dialIdle(t, 8)
	if response := s.dial(t).get(t); response.Close {
		t.Error("got Connection: close, want the connection kept, because nobody else waits")
	}
	if closed := countClosed(idle); closed != 1 {
		t.Errorf("%d connections were closed, want 1", closed)
	}
	line := harness.WaitForLog(t, s.log, "all connection slots are taken; closing connections that complete no requests", 1)[0]
	if line["level"] != "WARN" || line["slots"] != 8.0 {
		t.Errorf("logged %v", line)
	}
}

func countClosed(clients []client) (closed int) {
	for _, c := range clients {
		if harness.Closed(c) {
			closed++
		}
	}
	return closed
}

func TestNobodyIsEvictedWhileSlotsAreFree(t *testing.T) {
	t.Parallel()
	s := startServer(t, 9)
	idle := s.dialIdle(t, 8)
	s.dial(t).get(t)
	if closed := countClosed(idle); closed != 0 {
		t.Errorf("%d connections were closed, want none", closed)
	}
}

func TestLooksEvictFourTimesAsManyEachTime(t *testing.T) {
	t.Parallel()
	s := startServer(t, 100)
	left := 60
	s.dialIdle(t, left)
	for _, n := range []int{0, 1, 4, 16} { // the first look only sees them
		s.look()
		left -= n
		harness.WaitFor(t, fmt.Sprintf("%d connections to be left", left), func() bool { open, _, _ := s.count(); return open == left })
	}
	s.mu.Lock()
	s.evictedAt = s.evictedAt.Add(-time.Second)
	s.mu.Unlock()
	s.look()
	harness.WaitFor(t, "one more to be closed", func() bool { open, _, _ := s.count(); return open == left-1 })
}

// What the client cannot make go on is spared, whatever it looks like.
func TestWhatIsEvicted(t *testing.T) {
	t.Parallel()
	nothing := func(*testing.T, client) {}
	for name, test := range map[string]struct {
		sent    string
		phase   phase
		between func(*testing.T, client) // done between the two looks
		evicted bool
	}{
		"silent":                       {"", idle, nothing, true},
		"idle after a request":         {request, idle, nothing, true},
		"idle, with a request between": {request, idle, func(t *testing.T, c client) { c.get(t) }, false},
		"the end of a line":            {"\r", idle, nothing, true},
		"half a header":                {harness.HalfRequest, header, nothing, true},
		"half a header, one byte more": {harness.HalfRequest, header, func(t *testing.T, c client) { harness.Write(t, c, "h") }, true},
		"in its handler":               {slowRequest, working, nothing, false},
		"a response that nobody reads": {"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n", sending, nothing, true},
		"a body that does not come":    {postHeader + "Content-Length: 10\r\n\r\n", closed, nothing, true},
		"a header that is too large":   {harness.LargeRequest(maxHeaderBytes + 1), closed, nothing, true},
	} {
		test := test
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, 1)
			t.Cleanup(func() { close(s.release) })
			c := s.dialSmall(t)
			harness.Write(t, c, test.sent)
			if test.sent == request {
				c.receive(t)
			}
			s.waitFor(t, 1, test.phase)
			s.look()
			if open, _, _ := s.count(); open != 1 {
				t.Error("the connection was evicted by the first look")
			}
			test.between(t, c)
			s.waitFor(t, 1, test.phase)
			s.look()
			s.mu.Lock()
			evicted := !s.evictedAt.IsZero()
			s.mu.Unlock()
			if evicted != test.evicted {
				t.Errorf("evicted: got %t, want %t", evicted, test.evicted)
			}
			if test.evicted {
				harness.WaitFor(t, "its slot", func() bool { return len(s.slots) == 0 })
			}
		})
	}
}

func TestResponsesCloseConnectionsOnlyWhileSomebodyWaits(t *testing.T) {
	t.Parallel()
	s := startServer(t, 1)
	first := s.dial(t)
	if response := first.get(t); response.Close {
		t.Error("alone: got Connection: close")
	}
	// Two requests at once: the second is read when the first, which starts alone, is done.
	harness.Write(t, first, slowRequest+request)
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
	first.Close()
	if response := second.get(t); response.Close {
		t.Error("alone again: got Connection: close")
	}
}

// More clients than slots take turns, because each reconnects when it is told to. None of their
// requests should fail; 2 in 1,000 may, because on a busy machine a client may get no processor time
// for longer than the others are patient.
func TestManyGoodClientsLoseNoRequest(t *testing.T) {
	t.Parallel()
	const slots, clients, requests = 8, 64, 50
	s := startServer(t, slots)
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
