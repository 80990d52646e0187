package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

// When net/http closes a connection, the client has time to read the response. A reset, which is what
// closing with unread data is, could destroy it.
const (
	lingerTime        = 10 * time.Second // for the client to close its end; it is long for clients that read slowly
	stopLingerTime    = time.Second      // the same, when the server stops
	lingerBytes       = 256 << 10        // what the client may still send; net/http reads as much of a body
	lingerBytesNeeded = 32 << 10         // the same, while a new connection waits for a slot
)

// phase is what a connection waits for. In header, working and sending, a request is in flight.
type phase int32

const (
	accepted phase = iota // net/http has not begun to read
	idle                  // the client is to send a request
	header                // the client is to send the rest of a header
	working               // the handler is to respond
	sending               // the kernel is to take a part of the response, for which the client may have to read
	closed                // net/http has closed it; the client is to close its end
)

var errRefused = errors.New("the request's header exceeds a limit")

// conn is the server's end of a connection. It embeds net.Conn, because net/http sleeps for half a second after
// the CloseWrite of a *net.TCPConn.
type conn struct {
	net.Conn
	listener *listener
	current  atomic.Int32 // a phase
	seen     atomic.Bool  // a look has seen it in this phase
	closedAt time.Time    // guarded by listener.mu

	// Of the header that arrives. Read and stateChanged use these, which net/http calls one after the other.
	size, lines int    // bytes; complete lines, with the request line
	inLine      bool   // the next line has begun
	rest        []byte // what has arrived behind the header; net/http is to read it next
}

func (c *conn) phase() phase { return phase(c.current.Load()) }

func (c *conn) enter(p phase) {
	c.current.Store(int32(p))
	c.seen.Store(false)
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
	if c.phase() == accepted {
		c.enter(idle)
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

// count counts the bytes and lines of the header that arrives in p. It returns how many bytes net/http gets:
// those up to the end of the header, or all of them if the header is complete already.
func (c *conn) count(p []byte) (n int, err error) {
	if c.phase() >= working {
		// A part of the body, or the first byte of the next request, which net/http reads ahead.
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

// refuse sends a response like those that net/http sends itself, and returns an error to which it adds none.
func (c *conn) refuse(status string) error {
	c.SetWriteDeadline(time.Now().Add(writeTimeout))
	fmt.Fprintf(c.Conn, "HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n%[1]s", status)
	return &net.OpError{Op: "read", Net: "tcp", Err: errRefused}
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

// Write writes to the connection.
func (c *conn) Write(p []byte) (int, error) {
	c.enter(sending)
	defer c.enter(working)
	return c.Conn.Write(p)
}

// Close ends the stream to the client, and closes the connection in the background when the client has closed
// its end. Until then the kernel's memory may hold the response, so the connection keeps its slot.
func (c *conn) Close() error {
	c.listener.mu.Lock()
	again := !c.closedAt.IsZero()
	c.enter(closed)
	c.closedAt = time.Now()
	c.listener.mu.Unlock()
	if again {
		return net.ErrClosed
	}
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil { // evicted, or reset by the client
		c.abort()
		c.listener.remove(c)
		return err
	}
	go c.linger()
	return nil
}

// linger reads until the client closes its end, has had enough time, or has sent too much. A client that has
// closed its end early, as nc does, may still read. If its slot were free then, thousands of such clients that do
// not read could fill the kernel's memory.
func (c *conn) linger() {
	defer c.listener.remove(c)
	deadline := time.Now().Add(c.listener.lingerTime)
	c.SetReadDeadline(deadline)
	var err error
	buffer := make([]byte, 1<<10)
	for limit, discarded := lingerBytes, 0; err == nil && discarded <= limit; {
		var n int
		n, err = c.Conn.Read(buffer)
		discarded += n
		if c.listener.waiting.Load() {
			limit = lingerBytesNeeded
		}
	}
	tcp := c.Conn.(*net.TCPConn)
	for pause := time.Millisecond; err == io.EOF && !delivered(tcp); pause = min(2*pause, 32*time.Millisecond) {
		if time.Now().After(deadline) {
			err = os.ErrDeadlineExceeded
		}
		time.Sleep(pause) // polls, because the kernel does not report acknowledgements
	}
	if err == io.EOF {
		c.Conn.Close()
	} else {
		c.abort()
	}
}

// abort closes the connection at once. The kernel drops what the client does not have. It returns an error
// if the connection is closed already.
func (c *conn) abort() error {
	tcp := c.Conn.(*net.TCPConn)
	tcp.SetLinger(0)
	return tcp.Close()
}
