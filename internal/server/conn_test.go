package server

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

// fields is a header of n lines, with Host.
func fields(n int) string { return "Host: localhost\r\n" + strings.Repeat("A: b\r\n", n-1) }

func TestHeaderLimits(t *testing.T) {
	t.Parallel()
	const get, post, end = "GET / HTTP/1.1\r\n", "POST / HTTP/1.1\r\n", "\r\n"
	body, largest, tooLarge := strings.Repeat("a\n", 150), harness.LargeRequest(maxHeaderBytes), harness.LargeRequest(maxHeaderBytes+1)
	for name, test := range map[string]struct {
		sent string
		want []int // the responses' status codes
	}{
		"100 lines":                          {get + fields(100) + end, []int{200}},
		"101 lines":                          {get + fields(101) + end, []int{400}},
		"101 lines without an end":           {get + fields(101), []int{400}},
		"101 lines that end in LF only":      {strings.ReplaceAll(get+fields(101)+end, "\r", ""), []int{400}},
		"100 lines that end in LF only":      {strings.ReplaceAll(get+fields(100)+end, "\r", ""), []int{200}},
		"100 lines after a stray empty line": {"POST / HTTP/1.1\r\nContent-Length: 0\r\n" + fields(99) + end + end + get + fields(100) + end, []int{200, 200}},
		"100 lines twice":                    {strings.Repeat(get+fields(100)+end, 2), []int{200, 200}},
		"101 lines behind a whole request":   {get + fields(1) + end + get + fields(101) + end, []int{200, 400}},
		"half a header behind a whole one":   {get + fields(100) + end + get + fields(101), []int{200, 400}},
		"50 pipelined requests of 10 lines":  {strings.Repeat(get+fields(10)+end, 50), repeat(200, 50)},
		"16 KiB":                             {largest, []int{200}},
		"16 KiB twice":                       {largest + largest, []int{200, 200}},
		"16 KiB and a byte":                  {tooLarge, []int{431}},
		"16 KiB and a byte, without an end":  {tooLarge[:len(tooLarge)-4] + "ccccc", []int{431}},
		"16 KiB and a byte behind a request": {request + tooLarge, []int{200, 431}},
		"a body of 150 lines":                {post + fields(2) + "Content-Length: 300\r\n" + end + body, []int{200}},
		"a chunked body of 150 lines":        {post + fields(2) + "Transfer-Encoding: chunked\r\n" + end + "12c\r\n" + body + "\r\n0\r\n\r\n", []int{200}},
	} {
		for _, packets := range []string{"one packet", "many packets"} {
			test, size := test, len(test.sent)
			if packets == "many packets" {
				size = 100
			}
			t.Run(name+" in "+packets, func(t *testing.T) {
				t.Parallel()
				c := startServer(t, 1).dial(t)
				go func() { // while responses are read
					for rest := test.sent; rest != ""; {
						n := min(size, len(rest))
						if _, err := io.WriteString(c, rest[:n]); err != nil {
							return
						}
						rest = rest[n:]
					}
				}()
				for i, want := range test.want {
					response, body := harness.Receive(t, c.reader, "GET")
					if response.StatusCode != want {
						t.Fatalf("response %d: got %d, want %d", i, response.StatusCode, want)
					}
					if only := fmt.Sprint(want, " ", http.StatusText(want)); want != 200 && body != only {
						t.Errorf("response %d: got %q and what follows it, want only %q", i, body, only)
					}
				}
			})
		}
	}
}

func repeat(status, n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = status
	}
	return list
}

// However the bytes arrive, the header ends at the same one.
func TestHeaderDoesNotDependOnThePackets(t *testing.T) {
	t.Parallel()
	sent := "\r\nGET / HTTP/1.1\n" + fields(20) + "\r\nGET"
	for size := 1; size <= len(sent); size++ {
		end, _ := net.Pipe()
		c, got := &conn{Conn: end}, 0
		c.enter(idle)
		for start := 0; start < len(sent) && c.phase() != working; start += size {
			n, err := c.count([]byte(sent[start:min(start+size, len(sent))]))
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
		if sent[got:] != "GET" {
			t.Errorf("in pieces of %d bytes: the header ends before %q, want %q", size, sent[got:], "GET")
		}
	}
}

// The handler of a future endpoint may read a body, of which a part arrives with the header.
func TestHandlerReadsTheWholeBody(t *testing.T) {
	t.Parallel()
	s := startServer(t, 1)
	s.reads = true
	sent := strings.Repeat("a line\n", 10_000)
	c := s.dial(t)
	harness.Write(t, c, fmt.Sprintf("%sContent-Length: %d\r\n\r\n", postHeader, len(sent))+sent)
	if response, got := harness.Receive(t, c.reader, "POST"); response.StatusCode != 200 || got != sent {
		t.Errorf("got %d and %d bytes, want 200 and the %d bytes that were sent", response.StatusCode, len(got), len(sent))
	}
}

// A client may close its side before it has read the response, as nc does, may read slowly, and may send more
// behind a request that closes the connection.
func TestCloseDeliversTheWholeResponse(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*testing.T, client){
		"the client reads":           func(*testing.T, client) {},
		"the client closes its side": func(_ *testing.T, c client) { c.CloseWrite() },
		"the client sends more":      func(t *testing.T, c client) { go io.WriteString(c, strings.Repeat(request, 5000)) },
	} {
		prepare := prepare
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, 1)
			c := s.dialSmall(t)
			harness.Write(t, c, "GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
			prepare(t, c)
			s.waitFor(t, 1, sending)
			response, err := http.ReadResponse(bufio.NewReaderSize(c, 16), nil)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, response.Body); n != largeSize || err != nil {
				t.Errorf("got %d bytes, %v, want %d", n, err, largeSize)
			}
			c.Close()
			harness.WaitFor(t, "the slot", func() bool { return len(s.slots) == 0 })
		})
	}
}

func TestClientThatStillSendsIsNotReset(t *testing.T) {
	t.Parallel()
	s := startServer(t, 1)
	c := s.dial(t)
	harness.Write(t, c, postHeader+"Content-Length: 1000000\r\n\r\n")
	c.receive(t)
	if _, err := c.reader.ReadByte(); err != io.EOF {
		t.Errorf("after the response: got %v, want %v", err, io.EOF)
	}
	for i := 0; i < 10; i++ {
		harness.Write(t, c, strings.Repeat("x", lingerBytes/20))
	}
	if n := len(s.slots); n != 1 {
		t.Errorf("got %d slots taken, want 1, because the client may still be sending", n)
	}
}

// A proxy sends a large body until nobody takes it any more, and then looks for the response.
func TestClientThatSendsALargeBodyGetsTheResponse(t *testing.T) {
	t.Parallel()
	s := startServer(t, 1)
	c := s.dial(t)
	harness.Write(t, c, postHeader+"Content-Length: 100000000\r\n\r\n")
	c.SetWriteDeadline(time.Now().Add(lingerUnread / 2))
	if _, err := c.Write(make([]byte, 100_000_000)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("sending the body: got %v, want %v", err, os.ErrDeadlineExceeded)
	}
	c.receive(t)
}

// What a client gets that takes more than it is given.
func TestLingerEnds(t *testing.T) {
	t.Parallel()
	const upload = postHeader + "Content-Length: 10000000\r\n\r\n"
	for name, test := range map[string]struct {
		time    time.Duration
		waiting bool
		body    int
	}{
		"after its time":                          {50 * time.Millisecond, false, 0},
		"after its bytes":                         {time.Hour, false, 8 * lingerBytes},
		"after fewer bytes, while somebody waits": {time.Hour, true, lingerBytes},
	} {
		test := test
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, 100)
			s.lingerTime = test.time
			c := s.dial(t)
			harness.Write(t, c, upload)
			c.receive(t)
			s.waitFor(t, 1, closed)
			s.waiting.Store(test.waiting)
			io.WriteString(c, strings.Repeat("x", test.body)) // fails when the connection is reset
			harness.WaitFor(t, "the slot", func() bool { return len(s.slots) == 0 })
			_, err := c.reader.ReadByte()
			if _, writeErr := io.WriteString(c, "x"); errors.Is(err, io.EOF) && writeErr == nil {
				t.Error("the connection was closed, want a reset")
			}
		})
	}
}
