package server

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// When net/http closes a connection, the client has time to read the response. Closing with unread data sends a
// reset, which could destroy it.
const (
	lingerTime          = 10 * time.Second // for the client to close its end; it is long for clients that read slowly
	stopLingerTime      = time.Second      // of that, how much a stop waits for
	lingerBytes         = 256 << 10        // what the client may still send; net/http reads as much of a body
	lingerBytesWhenFull = 32 << 10         // the same, while a new connection waits for a slot

	// After as many bytes, a client may still be sending. Its kernel's buffers fill when nobody reads, so that a
	// proxy stops sending and looks for the response. A reset at once would cost it the response.
	lingerUnread = 500 * time.Millisecond // net/http waits as long
)

// phase is what a connection waits for.
//
//	phase     waits for                                    in flight   may be evicted
//	accepted  net/http, which has not begun to read        yes         no
//	idle      the client, to send a request                no          yes
//	header    the client, to send the rest of a header     yes         yes
//	working   the handler                                  yes         no
//	sending   the client, to read, if the kernel is full   yes         yes
//	closed    the client, to close its end                 no          yes
type phase int32

const (
	accepted phase = iota
	idle
	header
	working
	sending
	closed
)

// conn is the server's end of a connection. It embeds net.Conn and not *net.TCPConn, whose other methods would let
// net/http write and end the stream past Write and Close.
type conn struct {
	net.Conn
	listener *listener
	current  atomic.Int32 // a phase
	seen     atomic.Bool  // a look has seen it in this phase
	closedAt time.Time    // guarded by listener.mu

	// The header that arrives. Only Read and stateChanged use it, and net/http never calls both at once.
	size, lines int    // bytes; complete lines, with the request line
	inLine      bool   // the next line has begun
	rest        []byte // what has arrived behind the header; net/http is to read it next
}

func (c *conn) phase() phase { return phase(c.current.Load()) }

func (c *conn) enter(p phase) {
	c.seen.Store(false) // first, so that no look takes it for seen in p
	c.current.Store(int32(p))
}

// stateChanged is the http.Server's ConnState.
func stateChanged(nc net.Conn, state http.ConnState) {
	if state != http.StateIdle {
		return
	}
	// The response is sent. A client that has not waited for it may have sent a part of the next request.
	c := nc.(*conn)
	if c.inLine || hasText(c.rest) {
		c.enter(header)
	} else {
		c.enter(idle)
	}
}

// Read reads from the connection. It stops at the end of a header, because what follows is a body, or the next
// request, whose header is counted anew. It fails if a header is too large or has too many lines.
func (c *conn) Read(p []byte) (n int, err error) {
	switch c.phase() {
	case accepted:
		c.enter(idle)
	case header:
		if c.size < 4 { // net/http takes a connection with less for idle
			c.SetReadDeadline(time.Now().Add(readHeaderTimeout))
		}
	case closed:
		return 0, net.ErrClosed
	}
	if len(c.rest) > 0 {
		n, err = c.count(c.rest[:min(len(c.rest), len(p))])
		copy(p, c.rest[:n])
		c.rest = c.rest[n:]
		return n, err
	}
	received, err := c.Conn.Read(p)
	if received == 0 {
		return 0, err
	}
	n, err = c.count(p[:received])
	c.rest = append(c.rest, p[n:received]...)
	return n, err
}

// count counts what arrives of a header. It returns how many bytes of p net/http gets: those up to the header's
// end, or all of them if the header was complete before.
func (c *conn) count(p []byte) (n int, err error) {
	if c.phase() == working || c.phase() == sending {
		// A part of the body, after which the connection closes, or one byte of the next header, which net/http
		// reads ahead and which counts as its first.
		c.size, c.inLine = len(p), hasText(p)
		return len(p), nil
	}
	complete := false
	for n < len(p) && !complete {
		line, rest, ends := bytes.Cut(p[n:], []byte{'\n'})
		n = len(p) - len(rest)
		c.inLine = c.inLine || hasText(line)
		switch {
		case ends && c.inLine:
			c.lines++
			c.inLine = false
		case ends && c.lines > 0: // an empty line
			complete = true
		}
	}
	c.size += n
	switch {
	case c.lines > 1+maxHeaderLines:
		return 0, c.refuse("400 Bad Request")
	case c.size > maxHeaderBytes:
		return 0, c.refuse("431 Request Header Fields Too Large")
	case complete:
		c.size, c.lines = 0, 0
		c.enter(working)
	case c.phase() == idle && (c.inLine || c.lines > 0):
		c.enter(header)
	}
	return n, nil
}

// hasText reports whether p has a character that does not end a line.
func hasText(p []byte) bool {
	for _, b := range p {
		if b != '\r' && b != '\n' {
			return true
		}
	}
	return false
}

// refuse sends a response in the form of those that net/http sends itself. It closes the connection, so that net/http
// adds nothing to it.
func (c *conn) refuse(status string) error {
	c.SetWriteDeadline(time.Now().Add(writeTimeout))
	fmt.Fprintf(c.Conn, "HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n%[1]s", status)
	c.Close()
	return net.ErrClosed
}

// Write writes to the connection.
func (c *conn) Write(p []byte) (int, error) {
	if c.phase() == closed {
		return 0, net.ErrClosed
	}
	c.enter(sending)
	defer c.enter(working)
	return c.Conn.Write(p)
}

// Close ends the stream to the client, and closes the connection in the background when the client has had time
// to read. Until then the kernel's memory may hold the response, so the connection keeps its slot.
func (c *conn) Close() error {
	if c.phase() == closed {
		return net.ErrClosed
	}
	c.listener.mu.Lock()
	c.enter(closed)
	c.closedAt = time.Now()
	c.listener.mu.Unlock()
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil { // evicted, or reset by the client
		c.abort()
		c.listener.remove(c)
		return err
	}
	go c.linger()
	return nil
}

// linger closes the connection when the client has closed its end and has the response. It resets the connection
// if that takes too long, or if the client sends too much.
func (c *conn) linger() {
	defer c.listener.remove(c)
	deadline := time.Now().Add(c.listener.lingerTime)
	if !c.discard(deadline) {
		c.abort()
		return
	}
	// A client that has closed its end early, as nc does, may still read. If its slot were free now, thousands
	// that do not read could fill the kernel's memory.
	for pause := time.Millisecond; !delivered(c.Conn.(*net.TCPConn)); pause = min(2*pause, 32*time.Millisecond) {
		if time.Now().After(deadline) {
			c.abort()
			return
		}
		time.Sleep(pause) // polls, because the kernel does not report acknowledgements
	}
	c.Conn.Close()
}

// discard reads until the client closes its end. It returns false if the deadline is over first, or if the
// connection fails, or if the client sends too much.
func (c *conn) discard(deadline time.Time) bool {
	c.SetReadDeadline(deadline)
	buffer := make([]byte, 1<<10)
	for discarded := 0; ; {
		n, err := c.Conn.Read(buffer)
		discarded += n
		switch {
		case err != nil:
			return err == io.EOF
		case discarded > lingerBytesWhenFull && c.listener.waiting.Load():
			return false
		case discarded > lingerBytes:
			for end := time.Now().Add(lingerUnread); time.Now().Before(end) && !c.listener.waiting.Load(); {
				time.Sleep(20 * time.Millisecond) // polls, because nothing tells that somebody waits
			}
			return false
		}
	}
}

// abort closes the connection at once. The kernel drops what the client does not have. It returns an error
// if the connection is closed already.
func (c *conn) abort() error {
	tcp := c.Conn.(*net.TCPConn)
	tcp.SetLinger(0)
	return tcp.Close()
}
