package server

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"time"
)

const (
	maxHeaderBytes = 16 << 10 // request line and header; twice what common proxies forward
	maxHeaderLines = 100      // for short lines, net/http needs many times their size; Apache and Tomcat allow 100 too
)

// After the last response, what the client still sends is read and dropped, because to close with unread data would reset
// the connection, which could destroy the response.
const (
	lingerBytes         = 256 << 10 // as much as net/http reads of a body
	lingerBytesWhenFull = 8 << 10   // the same, while a new connection waits for a slot

	// Before the reset is a pause, in which a proxy that can send no more of a large body looks for the response. Net/http
	// waits as long.
	lingerUnread = 500 * time.Millisecond
)

// phase is what a connection waits for. When slots are needed, listener.look evicts those that lose least first, and never
// those that wait for the handler.
type phase uint32

const (
	idle    phase = iota // for a request; from here on in the order of eviction
	header               // for the rest of a request's header, which in the phases below is complete
	closing              // for the client to close its end, too
	sending              // for the client to take the response, or to send a body that net/http waits for
	working              // for the handler
)

// timeLimits says how long a connection may stay in a phase. http.Server's timeouts are not used, because they set several
// timers for each request.
var timeLimits = [...]time.Duration{
	idle:    620 * time.Second, // longer than load balancers keep theirs, usually 60 or 600 s
	header:  5 * time.Second,   // which clients send at once
	closing: 10 * time.Second,
	sending: 5 * time.Second, // for a few KB; less than a stop waits by default
	working: math.MaxInt64,
}

// conn is the server's end of a connection.
type conn struct {
	net.Conn // the same as tcp, but without ReadFrom and CloseWrite, by which net/http would go past Write and Close
	tcp      *net.TCPConn
	listener *listener
	current  atomic.Int32 // the phase
	entered  atomic.Bool  // a phase has begun since the last check

	since time.Time // when a check first found the connection in its phase; the caller of check holds listener.mu

	// For Read.
	received bytes.Buffer // from the client: the header that arrives, from its beginning, and what follows it
	given    int          // how many of these bytes net/http has
}

func (c *conn) phase() phase { return phase(c.current.Load()) }

func (c *conn) enter(p phase) {
	c.entered.Store(true) // first, because a check in between would see the new phase with the old one's time
	c.current.Store(int32(p))
}

// check returns the phase, and for how long checks have found the connection in it.
func (c *conn) check(now time.Time) (phase, time.Duration) {
	if c.entered.Swap(false) {
		c.since = now
	}
	return c.phase(), now.Sub(c.since)
}

// Read reads from the connection. It stops at the end of a header, because what follows is a body, or the next
// request, whose header is counted anew. It fails if a header is too large or has too many lines.
func (c *conn) Read(buffer []byte) (int, error) {
	if len(buffer) == 1 && c.phase() > header {
		// While a handler works, net/http reads one byte ahead, to cancel the request's context if the client leaves.
		// No handler here looks at its context, and without the byte there is less to do for each request. Net/http
		// asks for one byte only then.
		return 0, nil
	}
	if c.given == c.received.Len() {
		n, err := c.tcp.Read(buffer)
		if n == 0 {
			return 0, err
		}
		c.received.Write(buffer[:n])
	}
	p := c.received.Bytes()[:min(c.given+len(buffer), c.received.Len())]
	end, err := c.scan(p)
	n := copy(buffer, p[c.given:end])
	c.given = end
	if c.phase() > header {
		c.received.Next(end)
		c.given = 0
	}
	return n, err
}

// scan looks for the end of a header, of which p has all that has arrived. It returns how much of p net/http gets: up to the
// header's end, or all if that has not come, or came before.
func (c *conn) scan(p []byte) (end int, err error) {
	if c.phase() > header {
		return len(p), nil // a part of the body, after which the connection closes
	}
	empty := len(p) - len(bytes.TrimLeft(p, "\r\n")) // bytes of empty lines before the request
	lines, end, complete := p[empty:], len(p), false
	for _, emptyLine := range []string{"\n\r\n", "\n\n"} {
		if i := bytes.Index(lines, []byte(emptyLine)); i >= 0 {
			lines, end, complete = lines[:i+1], empty+i+len(emptyLine), true
		}
	}
	switch {
	case bytes.Count(lines, []byte{'\n'}) > 1+maxHeaderLines, complete && end < 4: // net/http would wait for four bytes
		return c.given, c.refuse("400 Bad Request")
	case end > maxHeaderBytes:
		return c.given, c.refuse("431 Request Header Fields Too Large")
	case complete:
		c.enter(working)
	case end > empty && c.phase() == idle:
		c.enter(header)
	}
	return end, nil
}

// refuse sends a response in the form of net/http's own. The error makes net/http close the connection. If it has half a line
// already, it would also send a 400 of its own, or go on reading, which the deadline and the reset prevent.
func (c *conn) refuse(status string) error {
	fmt.Fprintf(c, "HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n%[1]s", status)
	c.SetDeadline(time.Now())
	c.received.Reset()
	return os.ErrDeadlineExceeded
}

// Write enters the phase sending, once for a response, so that its time limit is for all writes, and for net/http's wait
// for a body after some answers of its own.
func (c *conn) Write(p []byte) (int, error) {
	if c.phase() != sending {
		c.enter(sending)
	}
	return c.tcp.Write(p)
}

// Close ends the stream to the client, and closes the connection in the background. Until then the kernel's memory may
// hold the response, so the connection keeps its slot.
func (c *conn) Close() error {
	c.enter(closing)
	c.SetReadDeadline(time.Time{})
	err := c.tcp.CloseWrite()
	go c.linger()
	return err
}

// linger closes the connection when the client has closed its end and has the response. It resets the connection if the
// client sends too much, or when the time for it is over.
func (c *conn) linger() {
	defer func() {
		c.listener.mu.Lock()
		defer c.listener.mu.Unlock()
		c.listener.reset(c) // after tcp.Close, it only gives the slot back
	}()
	for _, n := range []int64{lingerBytesWhenFull, lingerBytes - lingerBytesWhenFull} {
		_, err := io.CopyN(io.Discard, c.tcp, n)
		// A client that has closed its end early, as nc does, may still read. If its slot were free by then, thousands
		// that do not read could fill the kernel's memory. On Linux, CloseWrite fails when both ends are closed
		// and the client has everything. Other systems do not tell.
		for wait := 20 * time.Millisecond; err == io.EOF && runtime.GOOS == "linux" && c.tcp.CloseWrite() == nil; {
			time.Sleep(wait)
			wait = min(2*wait, time.Second)
			_, err = c.tcp.Read(make([]byte, 1))
		}
		if err == io.EOF {
			c.tcp.Close()
			c.listener.leavers.Add(1)
		}
		if err != nil || c.listener.waiting.Load() {
			return
		}
	}
	time.Sleep(lingerUnread)
}
