package server

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

func TestMaxConnections(t *testing.T) {
	t.Parallel()
	n := func(limit int64) *int64 { return &limit }
	for i, test := range []struct {
		memory, files *int64
		want          int
	}{
		{nil, nil, maxConnections},
		{n(1), nil, minConnections},
		{n(processCost + (minConnections+1)*connectionCost), nil, minConnections + 1},
		{n(processCost + (minConnections+2)*connectionCost - 1), nil, minConnections + 1},
		{n(1 << 40), nil, maxConnections},
		{nil, n(3), 1},
		{n(1), n(20), 20 - reservedFiles},
		{n(1), n(64), minConnections},
	} {
		if got := MaxConnections(test.memory, test.files); got != test.want {
			t.Errorf("case %d: got %d, want %d", i, got, test.want)
		}
	}
}

func TestNewClientEvictsOneIdleConnectionIfNoSlotIsFree(t *testing.T) {
	t.Parallel()
	s := startServer(t, 9)
	s.dialIdle(t, 8)
	for i, what := range []string{"with a free slot", "without"} {
		if response := s.dial(t).get(t); response.Close {
			t.Errorf("%s: got Connection: close, want the connection kept, because nobody else waits", what)
		}
		if open, _, _ := s.census(); open != 9 {
			t.Errorf("%s: %d connections were evicted, want %d", what, 9+i-open, i)
		}
	}
	const message = "all connection slots are taken; closing connections that complete no requests"
	if line := harness.WaitForLog(t, s.log, message, 1)[0]; line["level"] != "WARN" || line["slots"] != 9.0 {
		t.Errorf("logged %v", line)
	}
}

func TestLooksEvictFourTimesAsManyEachTime(t *testing.T) {
	t.Parallel()
	s := startServer(t, 100)
	s.dialIdle(t, 60)
	for i, look := range []struct {
		waited time.Duration // all connections, for their clients
		want   int
	}{{firstWait / 2, 0}, {firstWait, 1}, {lookPeriod, 4}, {lookPeriod, 16}, {firstWait, 1}} {
		if i == 4 {
			s.evictedAt = s.evictedAt.Add(-time.Second)
		}
		before := len(s.slots)
		s.waited(look.waited)
		s.look()
		if got := before - len(s.slots); got != look.want {
			t.Errorf("look %d evicted %d connections, want %d", i, got, look.want)
		}
	}
	const warning = "all connection slots are taken; closing connections that complete no requests"
	if got := len(harness.LogLines(s.log.String(), warning)); got != 2 {
		t.Errorf("got %d warnings, want one each time the evictions begin", got)
	}
}

func TestLooksGoOnFromOneWaitingConnectionToTheNext(t *testing.T) {
	t.Parallel()
	tcp := harness.Listen(t)
	l := newListener(tcp, 8, slog.New(slog.NewJSONHandler(io.Discard, nil)))
	for i := 0; i < cap(l.slots); i++ {
		harness.Dial(t, tcp.Addr().String())
		l.Accept()
	}
	// Enough clients have left before a look, so it evicts nobody, although the look before has seen everybody.
	l.look()
	time.Sleep(firstWait)
	l.leavers.Store(enoughLeavers)
	skipped := time.Now()
	l.acquireSlot()
	if l.evictedAt.Before(skipped.Add(lookPeriod)) {
		t.Errorf("evicted after %v, want after the second look", l.evictedAt.Sub(skipped))
	}
	// Looks evict although nobody waits as long as for one, because clients leave one by one.
	evictedAt := l.evictedAt
	for i := 0; i < 100 && l.evictedAt == evictedAt; i++ {
		time.AfterFunc(lookPeriod/4, func() { <-l.slots })
		l.acquireSlot()
	}
	if l.evictedAt == evictedAt {
		t.Error("nobody was evicted while connections waited")
	}
}

func TestRequestsSpareAConnectionAndBytesDoNot(t *testing.T) {
	t.Parallel()
	s := startServer(t, 2)
	busy, slow := s.dial(t), s.dial(t)
	busy.get(t)
	harness.Write(t, slow, harness.HalfRequest)
	s.waitFor(t, 1, header)
	s.look()
	time.Sleep(firstWait)
	busy.get(t)
	harness.Write(t, slow, "h")
	s.look()
	harness.WaitFor(t, "the reset", func() bool { return harness.Closed(slow) })
	busy.get(t)
}

func TestResponsesCloseConnectionsOnlyWhileSomebodyWaits(t *testing.T) {
	t.Parallel()
	s := startServer(t, 1)
	first := s.dial(t)
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

// getRepeatedly sends requests one after the other, none of them twice. It keeps a connection until a response
// closes it.
func getRepeatedly(address string, requests int) error {
	for i := 0; i < requests; {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Minute))
		reader := bufio.NewReader(conn)
		for open := true; open && i < requests; i++ {
			io.WriteString(conn, request) // if it fails, so does reading
			response, err := http.ReadResponse(reader, nil)
			if err == nil {
				_, err = io.ReadAll(response.Body)
			}
			if err != nil {
				return fmt.Errorf("request %d: %w", i, err)
			}
			open = !response.Close
		}
		conn.Close()
	}
	return nil
}
