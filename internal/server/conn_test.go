package server

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

// lines is a request with n lines in its header, and without the header's end.
func lines(n int) string {
	return "GET / HTTP/1.1\r\nHost: localhost\r\n" + strings.Repeat("A: b\r\n", n-1)
}

func TestHeaderLimits(t *testing.T) {
	t.Parallel()
	const tooLong, tooLarge = "400 Bad Request", "431 Request Header Fields Too Large"
	const end, chunked = "\r\n", "Transfer-Encoding: chunked\r\n\r\n"
	largest, larger := harness.LargeRequest(maxHeaderBytes), harness.LargeRequest(maxHeaderBytes+1)
	empty, body := postHeader+"Content-Length: 0\r\n"+end, strings.Repeat("a\n", 150)
	for name, test := range map[string]struct {
		sent     string
		answered int    // requests that get the handler's response
		refused  string // the status of the response after these, if there is one
	}{
		"100 lines twice":                    {strings.Repeat(lines(100)+end, 2), 2, ""},
		"100 lines behind a stray empty one": {empty + end + lines(100) + end, 2, ""},
		"101 lines behind a whole request":   {lines(100) + end + lines(101), 1, tooLong},
		"101 lines that end in LF only":      {strings.ReplaceAll(lines(101)+end, "\r", ""), 0, tooLong},
		"101 lines without an end":           {lines(101), 0, tooLong},
		"50 pipelined requests of 10 lines":  {strings.Repeat(lines(10)+end, 50), 50, ""},
		"16 KiB twice":                       {largest + largest, 2, ""},
		"16 KiB and a byte, without an end":  {larger[:len(larger)-4] + "cccc", 0, tooLarge},
		"16 KiB and a byte behind a request": {request + larger, 1, tooLarge},
		"16 KiB and a byte of CR only":       {request + strings.Repeat("\r", maxHeaderBytes+1), 1, tooLarge},
		"a header of three bytes":            {request + "X\n\n", 1, tooLong},
		"a body of 150 lines":                {postHeader + "Content-Length: 300\r\n" + end + body, 1, ""},
		"a chunked body of 150 lines":        {postHeader + chunked + "12c\r\n" + body + "\r\n0\r\n\r\n", 1, ""},
	} {
		for packets, size := range map[string]int{"one packet": len(test.sent), "many packets": 100} {
			test, size := test, size
			t.Run(name+" in "+packets, func(t *testing.T) {
				t.Parallel()
				c := startServer(t, 1).dial(t)
				go func() { // while responses are read
					for rest := test.sent; rest != ""; rest = rest[min(size, len(rest)):] {
						io.WriteString(c, rest[:min(size, len(rest))]) // fails after a refusal
					}
				}()
				for i := 0; i < test.answered; i++ {
					c.receive(t)
				}
				if test.refused == "" {
					return
				}
				// The body goes on until the connection closes, so it shows that nothing follows.
				response, body := harness.Receive(t, c.reader, "GET")
				if response.Status != test.refused || body != test.refused {
					t.Errorf("got %s with %q and what follows it, want only %s", response.Status, body, test.refused)
				}
			})
		}
	}
}

// What a client has sent decides how long it may wait, whether a stop waits for it, and whether it is evicted.
func TestPhases(t *testing.T) {
	t.Parallel()
	const body, endless = "Content-Length: 10\r\n\r\n", 1000 * time.Hour
	of := [...]struct {
		limit             time.Duration
		inFlight, evicted bool
	}{
		idle: {620 * time.Second, false, true}, header: {5 * time.Second, true, true}, closing: {10 * time.Second, false, true},
		sending: {5 * time.Second, true, true}, working: {endless, true, false},
	}
	for name, test := range map[string]struct {
		sent  string
		phase phase
	}{
		"nothing":                          {"", idle},
		"a request":                        {request, idle},
		"a stray empty line":               {request + "\r\n", idle},
		"stray empty lines":                {request + "\r\n\n\r\n", closing}, // net/http refuses four bytes
		"two bytes of a header":            {"GE", header},                    // which are nothing to net/http
		"half a header":                    {harness.HalfRequest, header},
		"half a header behind a request":   {request + harness.HalfRequest, header},
		"a header that is too large":       {harness.LargeRequest(maxHeaderBytes + 1), closing},
		"a request that is handled":        {slowRequest, working},
		"a request for much":               {"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n", sending},
		"no body":                          {postHeader + body, closing},
		"half a body":                      {postHeader + body + "half", closing},
		"a chunk without an end":           {postHeader + "Transfer-Encoding: chunked\r\n\r\nff\r\nhalf\n", closing},
		"no body behind an unknown Expect": {postHeader + "Expect: x\r\n" + body, sending},
	} {
		test, want := test, of[test.phase]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			send := func() *testServer {
				s := startServer(t, 1)
				c := s.dial(t)
				c.SetReadBuffer(1) // the least there is
				harness.Write(t, c, test.sent)
				s.waitFor(t, 1, test.phase)
				return s
			}
			s := send()
			if _, inFlight, _ := s.census(); inFlight == 1 != want.inFlight {
				t.Errorf("got %d requests in flight", inFlight)
			}
			s.waited(want.limit - time.Second/2)
			s.sweep()
			time.Sleep(50 * time.Millisecond)
			s.waitFor(t, 1, test.phase)
			if want.limit != endless {
				if got := timeLimits[test.phase]; got != want.limit { // because sweeps go on, the next would end it, too
					t.Errorf("the limit is %v, want %v", got, want.limit)
				}
				s.waited(want.limit)
				s.sweep()
				s.waitFor(t, 0, test.phase)
			}

			s = send()
			s.waited(firstWait)
			s.look()
			if evicted := len(s.slots) == 0; evicted != want.evicted {
				t.Errorf("evicted: got %t", evicted)
			}
		})
	}
}

// When a Read fails, net/http takes half a line for a whole one, which may be all that a request lacks.
func TestRefusedRequestIsNotHandled(t *testing.T) {
	t.Parallel()
	s := startServer(t, 1)
	c := s.dial(t)
	harness.Write(t, c, "GET /slow HTTP/1.1\r\nHost: localhost")
	s.waitFor(t, 1, header)
	harness.Write(t, c, "\r\n"+strings.Repeat("A: b\r\n", 101))
	if _, got := harness.Receive(t, c.reader, "GET"); got != "400 Bad Request" || len(s.entered) > 0 {
		t.Errorf("got %q, and %d requests were handled, want only a refusal", got, len(s.entered))
	}
}

// A client that does not read holds up a refusal, too. It is then in a phase whose time limit ends the writing.
func TestRefusalIsAResponse(t *testing.T) {
	t.Parallel()
	s := startServer(t, 1)
	c := s.dial(t)
	c.SetReadBuffer(1) // the least there is
	s.waitFor(t, 1, idle)
	s.mu.Lock()
	for c := range s.conns {
		var full error
		for full == nil { // the kernel's buffers
			c.tcp.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			_, full = c.tcp.Write(make([]byte, 100))
		}
		c.tcp.SetWriteDeadline(time.Time{})
	}
	s.mu.Unlock()
	harness.Write(t, c, lines(101))
	s.waitFor(t, 1, sending)
}

func TestWritesOfAResponseShareItsTime(t *testing.T) {
	t.Parallel()
	s := startServer(t, 1)
	s.dial(t)
	s.waitFor(t, 1, idle)
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		began := time.Now()
		c.Write([]byte("a"))
		c.check(began)
		c.Write([]byte("b"))
		if p, waited := c.check(began.Add(time.Second)); p != sending || waited != time.Second {
			t.Errorf("got the phase %d for %v, want %d for 1s", p, waited, sending)
		}
	}
}

// However many bytes are read at a time, the header ends at the same one.
func TestHeaderDoesNotDependOnTheBuffer(t *testing.T) {
	t.Parallel()
	sent := "\r\n" + strings.Replace(lines(20), "\r", "", 1) + "\r\n"
	for size := 1; size <= len(sent); size++ {
		c, got := &conn{}, ""
		c.received.WriteString(sent + "GET")
		for c.received.Len() > 0 && c.phase() != working {
			buffer := make([]byte, size)
			n, _ := c.Read(buffer) // never refused
			got += string(buffer[:n])
		}
		if got != sent {
			t.Errorf("%d bytes at a time: got the header %q, want %q", size, got, sent)
		}
	}
}

// The handler of a future endpoint may read a body, of which a part arrives with the header.
func TestHandlerReadsTheWholeBody(t *testing.T) {
	t.Parallel()
	sent := strings.Repeat("a line\n", 10_000)
	c := startServer(t, 1).dial(t)
	harness.Write(t, c, fmt.Sprintf("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(sent), sent))
	if _, got := harness.Receive(t, c.reader, "POST"); got != sent {
		t.Errorf("the handler read %d bytes, want the %d bytes that were sent", len(got), len(sent))
	}
}

// A client may close its side before it has read the response, as nc does, may read slowly, and may send more
// behind a request that closes the connection.
func TestCloseDeliversTheWholeResponse(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(client){
		"the client reads":           func(client) {},
		"the client closes its side": func(c client) { c.CloseWrite() },
		"the client sends more":      func(c client) { go io.WriteString(c, strings.Repeat(request, 5000)) },
	} {
		name, prepare := name, prepare
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, 1)
			c := s.dial(t)
			c.SetReadBuffer(1) // the least there is
			harness.Write(t, c, "GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
			prepare(c)
			s.waitFor(t, 1, sending)
			if _, body := harness.Receive(t, bufio.NewReaderSize(c, 16), "GET"); len(body) != largeSize {
				t.Errorf("got %d bytes, want %d", len(body), largeSize)
			}
			c.Close()
			harness.WaitFor(t, "the slot", func() bool { return len(s.slots) == 0 })
			if name != "the client sends more" && s.leavers.Load() != 1 {
				t.Error("look does not know that the client has closed its connection")
			}
		})
	}
}

// A proxy sends a large body until nobody takes it any more, and then looks for the response.
func TestClientThatSendsALargeBodyGetsTheResponse(t *testing.T) {
	t.Parallel()
	c := startServer(t, 1).dial(t)
	harness.Write(t, c, postHeader+"Content-Length: 100000000\r\n\r\n")
	c.SetWriteDeadline(time.Now().Add(lingerUnread / 2))
	if _, err := c.Write(make([]byte, 100_000_000)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("sending the body: got %v, want %v", err, os.ErrDeadlineExceeded)
	}
	c.receive(t)
	if _, err := c.reader.ReadByte(); err != io.EOF {
		t.Errorf("after the response: got %v, want %v", err, io.EOF)
	}
}

// A client that has closed its end may still read, and the kernel holds what it has not read.
func TestSlotIsTakenUntilTheResponseIsDelivered(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux says what has been delivered")
	}
	s := startServer(t, 1)
	c := s.dial(t)
	c.SetReadBuffer(1)
	harness.Write(t, c, strings.Repeat(request, 40))
	c.CloseWrite()
	s.waitFor(t, 1, closing)
	time.Sleep(200 * time.Millisecond)
	if open, _, _ := s.census(); open != 1 {
		t.Error("the slot was free before the client had read the responses")
	}
	if n, err := io.Copy(io.Discard, c); n < 40*int64(len("done")) || err != nil {
		t.Errorf("got %d bytes, %v", n, err)
	}
	harness.WaitFor(t, "the slot", func() bool { return len(s.slots) == 0 })
}

// Without the panic in wrap, net/http would sleep for half a second before it closes. A busy machine has five tries.
func TestResponseToABodyClosesTheConnectionAtOnce(t *testing.T) {
	t.Parallel()
	s := startServer(t, 100)
	for i := 0; i < 5; i++ {
		c := s.dial(t)
		began := time.Now()
		harness.Write(t, c, postHeader+"Content-Length: 1000000\r\n\r\n")
		c.receive(t)
		if c.reader.ReadByte(); time.Since(began) < 400*time.Millisecond {
			return
		}
	}
	t.Error("the connection was closed late five times")
}

// What a client gets that sends more than it may.
func TestLingerEnds(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		waiting bool
		body    int
		least   time.Duration
	}{
		"after its bytes":                         {false, 8 * lingerBytes, lingerUnread},
		"after fewer bytes, while somebody waits": {true, lingerBytes / 2, 0},
	} {
		test := test
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, 100)
			c := s.dial(t)
			harness.Write(t, c, postHeader+"Content-Length: 10000000\r\n\r\n")
			c.receive(t)
			s.waitFor(t, 1, closing)
			began := time.Now()
			s.waiting.Store(test.waiting)
			io.WriteString(c, strings.Repeat("x", test.body)) // fails when the connection is reset
			harness.WaitFor(t, "the slot", func() bool { return len(s.slots) == 0 })
			if took := time.Since(began); took < test.least || took > timeLimits[closing]/2 {
				t.Errorf("lingered for %v, want %v", took, test.least)
			}
			_, err := c.reader.ReadByte()
			if _, writeErr := io.WriteString(c, "x"); errors.Is(err, io.EOF) && writeErr == nil {
				t.Error("the connection was closed, want a reset")
			}
		})
	}
}
