package httpconn

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

const request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

// connect returns both ends of a connection. The client's kernel takes only some bytes before they are read.
func connect(t *testing.T) (client *net.TCPConn, server *Conn) {
	t.Helper()
	listener := harness.Listen(t)
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { // before it connects, because the buffer does not shrink later
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1)
		})
	}}
	dialed, err := dialer.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialed.Close() })
	dialed.SetDeadline(time.Now().Add(15 * time.Second))
	accepted, err := listener.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	accepted.SetDeadline(time.Now().Add(15 * time.Second))
	return dialed.(*net.TCPConn), New(accepted)
}

// read reads what the client has sent.
func read(t *testing.T, server *Conn, want string) {
	t.Helper()
	p := make([]byte, 4096)
	n, err := server.Read(p)
	if err != nil || string(p[:n]) != want {
		t.Fatalf("got %q, %v, want %q", p[:n], err, want)
	}
}

// A client that sends a header in parts gains no time by it.
func TestHeaderIsAsOldAsItsFirstByte(t *testing.T) {
	t.Parallel()
	client, server := connect(t)
	since := func() time.Time {
		_, since := server.Waiting()
		return since
	}
	if !since().IsZero() {
		t.Errorf("before the first Read: got %v, want zero", since())
	}
	for i, parts := range [][]string{
		{request[:1], request[1:20], request[20:]},
		{request[:20], request[20 : len(request)-1], "\n"},
		{"\r", "\r", "\r"},
	} {
		before := since()
		var ages []time.Time
		for _, part := range parts {
			harness.Write(t, client, part)
			read(t, server, part)
			ages = append(ages, since())
		}
		if !ages[0].After(before) || ages[1] != ages[0] || ages[2] != ages[0] {
			t.Errorf("request %d: got %v, want one time after %v", i, ages, before)
		}
	}
}

func TestRequestIsInFlightUntilNetHTTPReadsOn(t *testing.T) {
	t.Parallel()
	client, server := connect(t)
	check := func(when string, forClient, inFlight bool) {
		t.Helper()
		harness.WaitFor(t, when, func() bool {
			got, _ := server.Waiting()
			return got == forClient && server.InFlight() == inFlight
		})
	}
	check("new", false, true)
	done := make(chan error)
	readOn := func(size int) {
		go func() {
			_, err := server.Read(make([]byte, size))
			done <- err
		}()
	}
	send := func(part string) {
		t.Helper()
		harness.Write(t, client, part)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	readOn(4096)
	check("silent", true, false)
	response := make([]byte, 6<<10)
	if _, err := server.Write(response); err != nil {
		t.Fatal(err)
	}
	check("a response of which the client's kernel has a part", true, true)
	if _, err := io.ReadFull(client, response); err != nil {
		t.Fatal(err)
	}
	check("a response that the client has", true, false)
	send(harness.HalfRequest)
	check("half a request, while net/http looks at it", false, true)
	readOn(4096)
	check("half a request", true, true)
	send(harness.RestOfRequest)
	server.SetState(http.StateActive)
	readOn(1) // as net/http does while a handler runs
	check("in a handler", false, true)
	send("G")
	server.SetState(http.StateIdle)
	readOn(4096)
	check("the first byte of the next request", true, true)
	send("ET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n" + "half")
	server.SetState(http.StateActive)
	readOn(4096)
	check("responded, and the body does not come", true, false)
	send("a body\nof two lines")
	check("after the body", false, true)
}

// A client may close its side before it has read the response, as nc does, and may send more behind a
// request that closes the connection.
func TestCloseDeliversTheWholeResponse(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*testing.T, *net.TCPConn){
		"the client reads":           func(*testing.T, *net.TCPConn) {},
		"the client closes its side": func(_ *testing.T, c *net.TCPConn) { c.CloseWrite() },
		"the client sends more":      func(t *testing.T, c *net.TCPConn) { harness.Write(t, c, request) },
	} {
		prepare := prepare
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, server := connect(t)
			prepare(t, client)
			response := make([]byte, 6<<10) // the server's kernel takes it, the client's does not
			if _, err := server.Write(response); err != nil {
				t.Fatal(err)
			}
			closed := make(chan error)
			go func() { closed <- server.Close() }()
			harness.WaitFor(t, "the kernel to keep a part of the response", server.unacknowledged)
			if !server.InFlight() {
				t.Error("in flight: got false, want true until the client has the response")
			}
			select {
			case <-closed:
				t.Error("Close returned before the client had the response")
			default:
			}
			got, err := io.ReadAll(client)
			if !bytes.Equal(got, response) {
				t.Errorf("the client received %d bytes, %v, want %d", len(got), err, len(response))
			}
			if err := <-closed; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCloseGivesUpOnAClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	client, server := connect(t)
	server.linger = 100 * time.Millisecond
	if _, err := server.Write(make([]byte, 6<<10)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < server.linger {
		t.Errorf("Close returned after %v, want at least %v", took, server.linger)
	}
	if _, err := io.ReadAll(client); err == nil {
		t.Error("the client received everything, want a reset, because the kernel was to drop the rest")
	}
}

func TestCloseDoesNotWaitForAClientThatHasReset(t *testing.T) {
	t.Parallel()
	client, server := connect(t)
	if _, err := server.Write(make([]byte, 6<<10)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	closed := make(chan error)
	go func() { closed <- server.Close() }()
	harness.WaitFor(t, "the kernel to keep a part of the response", server.unacknowledged)
	client.SetLinger(0)
	client.Close()
	<-closed
	if took := time.Since(began); took >= lingerTime {
		t.Errorf("Close returned after %v, want less than %v", took, lingerTime)
	}
}

// server serves HTTP on Conns, without a limit on how many there are. It returns its address.
func server(t *testing.T) string {
	t.Helper()
	listener := harness.Listen(t)
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength != 0 {
				w.Header().Set("Connection", "close") // as the service does, which reads no bodies
			}
			io.WriteString(w, "done")
		}),
		ConnState: func(c net.Conn, state http.ConnState) { c.(*Conn).SetState(state) },
	}
	served := make(chan error)
	go func() { served <- server.Serve(connListener{listener}) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	return listener.Addr().String()
}

type connListener struct{ *net.TCPListener }

func (l connListener) Accept() (net.Conn, error) {
	tcp, err := l.AcceptTCP()
	return New(tcp), err
}

// fields is a header of n lines, with Host.
func fields(n int) string { return "Host: localhost\r\n" + strings.Repeat("A: b\r\n", n-1) }

func TestHeaderLines(t *testing.T) {
	t.Parallel()
	address := server(t)
	const get, post, end = "GET / HTTP/1.1\r\n", "POST / HTTP/1.1\r\nConnection: close\r\n", "\r\n"
	bodyOf150Lines := strings.Repeat("a\n", 150)
	for name, test := range map[string]struct {
		sent string
		want []int // the responses' status codes, then the connection closes if the last is not 200
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
		"a body of 150 lines":                {post + fields(2) + "Content-Length: 300\r\n" + end + bodyOf150Lines, []int{200}},
		"a chunked body of 150 lines":        {post + fields(2) + "Transfer-Encoding: chunked\r\n" + end + "12c\r\n" + bodyOf150Lines + "\r\n0\r\n\r\n", []int{200}},
	} {
		for _, packets := range []string{"one packet", "many packets"} {
			test, size := test, len(test.sent)
			if packets == "many packets" {
				size = 100
			}
			t.Run(name+" in "+packets, func(t *testing.T) {
				t.Parallel()
				c := harness.Dial(t, address)
				reader := bufio.NewReader(c)
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
					response, _ := harness.Receive(t, reader, "GET")
					if response.StatusCode != want {
						t.Fatalf("response %d: got %d, want %d", i, response.StatusCode, want)
					}
				}
			})
		}
	}
}

// net/http reads a body of up to 256 KiB before it closes the connection. If it did not, the kernel would reset
// the connection while the client sends.
func TestLinesOfABodyDoNotEndTheConnection(t *testing.T) {
	t.Parallel()
	for name, line := range map[string]string{
		"long lines":                            strings.Repeat("x", 59) + "\n",
		"100 lines in the packet of the header": "x\n",
	} {
		line := line
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := harness.Dial(t, server(t))
			body := strings.Repeat(line, 180_000/len(line))
			harness.Write(t, c, fmt.Sprintf("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", len(body))+body[:6000])
			if response, _ := harness.Receive(t, bufio.NewReader(c), "POST"); response.StatusCode != 200 {
				t.Errorf("got %d, want 200", response.StatusCode)
			}
			for rest := body[6000:]; rest != ""; rest = rest[6000:] {
				harness.Write(t, c, rest[:6000])
			}
		})
	}
}

// net/http does not read a body of more than 256 KiB.
func TestClientThatStillSendsIsNotReset(t *testing.T) {
	t.Parallel()
	c := harness.Dial(t, server(t))
	harness.Write(t, c, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
	reader := bufio.NewReader(c)
	harness.Receive(t, reader, "POST")
	if _, err := reader.ReadByte(); err != io.EOF {
		t.Errorf("after the response: got %v, want %v", err, io.EOF)
	}
	for i := 0; i < 10; i++ {
		harness.Write(t, c, "body")
	}
}

func TestAbortEndsTheWaitForAClientThatMaySend(t *testing.T) {
	t.Parallel()
	_, server := connect(t)
	server.upload = time.Hour
	server.linger = time.Hour
	closed := make(chan error)
	go func() {
		defer func() {
			recover() // as net/http does
			closed <- server.Close()
		}()
		server.CloseWrite()
	}()
	harness.WaitFor(t, "Close", func() bool {
		server.mu.Lock()
		defer server.mu.Unlock()
		return server.closing
	})
	server.Abort()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("Close waits although the connection was aborted")
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
func TestLinesDoNotDependOnThePackets(t *testing.T) {
	t.Parallel()
	sent := []byte(request + "\r\nGET / HTTP/1.1\n" + fields(101) + "\r\n")
	want := new(Conn).countLines(sent)
	if want >= len(sent) || string(sent[want:]) != "\r\n" {
		t.Fatalf("the count ends at %q, want the end of line 101", sent[want:])
	}
	for size := 1; size < len(sent); size++ {
		c, got := new(Conn), 0
		for start := 0; start < len(sent) && c.lines <= 1+maxHeaderLines; start += size {
			got += c.countLines(sent[start:min(start+size, len(sent))])
		}
		if got != want {
			t.Errorf("in pieces of %d bytes: got %d, want %d", size, got, want)
		}
	}
}
