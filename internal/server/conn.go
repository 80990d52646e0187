package server

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// When net/http closes a connection, the client has time to read the response. A reset, which is what
// closing with unread data is, could destroy it.
const (
	lingerTime        = 10 * time.Second // for the client to close its end; it is long for clients that read slowly
	stopLinger        = time.Second      // the same, for a server that stops
	lingerBytes       = 256 << 10        // what the client may still send; net/http reads as much of a body
	lingerBytesNeeded = 32 << 10         // the same, while a new connection waits for a slot
)

// The phases of a connection.
const (
	idle     = iota // it waits for a request
	header          // a part of a request's header has arrived
	response        // the header is complete, and the response is not yet with the kernel
	closed          // net/http has closed it
)

// tooLarge is what net/http answers to a header that is too large.
const tooLarge = "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\n" +
	"Connection: close\r\n\r\n431 Request Header Fields Too Large"

var (
	errTooManyLines = errors.New("the request's header has too many lines")
	errTooLarge     = errors.New("the request's header is too large")
)

// conn is the server's end of a connection. It embeds net.Conn because net/http sleeps for half a second after
// the CloseWrite of a *net.TCPConn.
type conn struct {
	net.Conn
	listener *listener
	phase    atomic.Int32
	changed  atomic.Bool // http.ConnState has changed since the last look
	closedAt time.Time   // guarded by listener.mu

	// Of the header that is arriving. Only Read and stateChanged use these, and net/http calls them one after
	// the other.
	size, lines int
	inLine      bool   // a line has begun
	rest        []byte // was received, and net/http has not read it yet
}

// stateChanged is the http.Server's ConnState.
func stateChanged(nc net.Conn, state http.ConnState) {
	c := nc.(*conn)
	c.changed.Store(true)
	if state != http.StateIdle {
		return
	}
	// The response is sent. A client that does not wait for it may have sent a part of the next request.
	c.size, c.lines = 0, 0
	if c.inLine || hasText(c.rest) {
		c.phase.Store(header)
	} else {
		c.phase.Store(idle)
	}
}

// Read reads from the connection. It ends at the end of a header, because what follows is a body, or the next
// request, whose header is counted anew. It fails if a header is too large or has too many lines.
func (c *conn) Read(p []byte) (n int, err error) {
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
// those up to the end of the header, or all of them if the header was complete before.
func (c *conn) count(p []byte) (n int, err error) {
	if c.phase.Load() == response {
		c.inLine = hasText(p) // matters if it is the first byte of the next request, which net/http reads ahead
		return len(p), nil
	}
	for n < len(p) && c.phase.Load() != response {
		line, rest, ended := bytes.Cut(p[n:], []byte{'\n'})
		n = len(p) - len(rest)
		if hasText(line) {
			c.inLine = true
			c.phase.Store(header)
		}
		switch {
		case ended && c.inLine:
			c.lines++
			c.inLine = false
		case ended && c.lines > 0: // an empty line ends the header
			c.phase.Store(response)
		}
	}
	c.size += n
	switch {
	case c.lines > 1+maxHeaderLines: // with the request line
		return 0, errTooManyLines // net/http answers 400
	case c.size > maxHeaderBytes:
		c.SetWriteDeadline(time.Now().Add(writeTimeout))
		io.WriteString(c.Conn, tooLarge)
		return 0, &net.OpError{Op: "read", Net: "tcp", Err: errTooLarge} // net/http answers nothing
	}
	return n, nil
}

// hasText reports whether p has a character that is not of the end of a line.
func hasText(p []byte) bool { return len(bytes.Trim(p, "\r\n")) > 0 }

// Close ends the stream to the client, and closes the connection in the background when the client has ended
// its own. Until then the kernel's memory may hold the response, so the connection keeps its slot.
func (c *conn) Close() error {
	c.listener.mu.Lock()
	c.closedAt = time.Now()
	c.phase.Store(closed)
	c.listener.mu.Unlock()
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil { // evicted, or ended by the client
		c.abort()
		c.listener.remove(c)
		return err
	}
	go c.linger()
	return nil
}

// linger reads until the client closes its end, or has had enough time, or has sent too much.
func (c *conn) linger() {
	defer c.listener.remove(c)
	c.SetReadDeadline(time.Now().Add(lingerTime))
	buffer := make([]byte, 1<<10)
	for discarded := 0; ; {
		n, err := c.Conn.Read(buffer)
		discarded += n
		if err == io.EOF {
			c.Conn.Close()
			return
		}
		if err != nil || discarded > lingerBytes || discarded > lingerBytesNeeded && c.listener.waiting.Load() {
			c.abort()
			return
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
