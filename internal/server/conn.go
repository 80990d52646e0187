package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// After the last response, the client has time to read it. To close with unread data would reset the connection, which
// could destroy the response.
const (
	lingerTime          = 10 * time.Second // for the client to close its end, too
	lingerBytes         = 256 << 10        // what the client may still send; net/http reads as much of a body
	lingerBytesWhenFull = 32 << 10         // the same, while a new connection waits for a slot

	// After lingerBytes, nobody reads for a moment. Then the buffers fill, and a proxy that sends a large body looks for
	// the response. Net/http waits as long.
	lingerUnread = 500 * time.Millisecond
)

// phase is what a connection waits for. When slots are needed, listener.look evicts those that lose least first, and
// those that wait for the handler never.
type phase int32

const (
	idle    phase = iota // for a request
	header               // for the rest of a request's header
	closing              // for the client to close its end, too, or to stop sending
	sending              // for the client to read, if the kernel's buffers are full, or to send a body
	working              // for the handler

	seen phase = 8 // added to one of these: a look has seen the connection in it
)

// conn is the server's end of a connection.
type conn struct {
	net.Conn // the same as tcp, but without ReadFrom and CloseWrite, by which net/http would go past Write and Close
	tcp      *net.TCPConn
	listener *listener
	state    atomic.Int32 // a phase, and maybe seen

	// The header that arrives. Only Read and stateChanged use it, and net/http never calls both at once.
	size, lines int    // bytes; complete lines, with the request line
	inLine      bool   // the next line has begun
	rest        []byte // what has arrived behind the header; net/http is to read it next
	refused     error  // of every Read and Write after a header that is too large
}

func (c *conn) phase() phase { return phase(c.state.Load()) &^ seen }

func (c *conn) enter(p phase) { c.state.Store(int32(p)) }

// see marks a connection in phase p as seen. It reports whether it was, and has been in no other phase since.
func (c *conn) see(p phase) (again bool) {
	if c.state.CompareAndSwap(int32(p), int32(p|seen)) {
		return false
	}
	return phase(c.state.Load()) == p|seen
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
func (c *conn) Read(buffer []byte) (n int, err error) {
	if c.refused != nil {
		return 0, c.refused
	}
	if c.phase() == header && c.size < 4 { // net/http keeps the deadline of idle ones until it has four bytes
		c.SetReadDeadline(time.Now().Add(readTimeout))
	}
	if len(c.rest) > 0 {
		n, err = c.count(c.rest[:min(len(c.rest), len(buffer))])
		copy(buffer, c.rest[:n])
		c.rest = c.rest[n:]
		return n, err
	}
	received, err := c.tcp.Read(buffer)
	if received == 0 {
		return 0, err
	}
	n, err = c.count(buffer[:received])
	c.rest = append(c.rest, buffer[n:received]...)
	return n, err
}

// count counts what arrives of a header. It returns how many bytes of p net/http gets: those up to the header's
// end, or all of them if the header was complete before.
func (c *conn) count(p []byte) (n int, err error) {
	if c.phase() >= sending {
		// A part of the body, after which the connection closes, or one byte, which net/http reads ahead. That is
		// the first byte of the next header.
		c.size, c.inLine = len(p), hasText(p)
		return len(p), nil
	}
	complete := false
	for n < len(p) && !complete {
		switch b := p[n]; {
		case b == '\n' && c.inLine:
			c.lines++
			c.inLine = false
		case b == '\n':
			complete = c.lines > 0 // empty lines before a request do not count
		case b != '\r':
			c.inLine = true
		}
		n++
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

// hasText reports whether p has more than ends of lines.
func hasText(p []byte) bool { return len(bytes.Trim(p, "\r\n")) > 0 }

// refuse sends a response in the form of those that net/http sends itself. It returns an error after which net/http
// closes the connection without a response of its own, because its type means that the client has gone.
func (c *conn) refuse(status string) error {
	c.SetWriteDeadline(time.Now().Add(writeTimeout))
	fmt.Fprintf(c.tcp, "HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n%[1]s", status)
	c.refused = &net.OpError{Op: "read", Err: errors.New(status)}
	return c.refused
}

// Write writes to the connection, but nothing after a refusal, because net/http may take half a line for a bad request.
func (c *conn) Write(p []byte) (int, error) {
	if c.refused != nil {
		return 0, c.refused
	}
	c.enter(sending) // until the next phase, because net/http itself answers some requests and then waits for their body
	return c.tcp.Write(p)
}

// Close ends the stream to the client, and closes the connection in the background when the client has had time
// to read. Until then the kernel's memory may hold the response, so the connection keeps its slot.
func (c *conn) Close() error {
	c.enter(closing)
	if err := c.tcp.CloseWrite(); err != nil { // evicted, or reset by the client
		c.abort()
		return err
	}
	go c.linger()
	return nil
}

// linger closes the connection when the client has closed its end and has the response. It resets the connection
// if that takes too long, or if the client sends too much.
func (c *conn) linger() {
	defer c.abort()
	deadline := time.Now().Add(c.listener.lingerTime)
	c.SetReadDeadline(deadline)
	for _, n := range []int64{lingerBytesWhenFull, lingerBytes - lingerBytesWhenFull} {
		_, err := io.CopyN(io.Discard, c.tcp, n)
		if err == io.EOF {
			c.closeWhenDelivered(deadline)
		}
		if err != nil || c.listener.waiting.Load() {
			return
		}
	}
	time.Sleep(lingerUnread)
}

// closeWhenDelivered closes the connection when the client has the response. A client that has closed its end early,
// as nc does, may still read. If its slot were free before, thousands that do not read could fill the kernel's memory.
func (c *conn) closeWhenDelivered(deadline time.Time) {
	for time.Now().Before(deadline) {
		if delivered(c.tcp) {
			c.tcp.Close()
			return
		}
		time.Sleep(20 * time.Millisecond) // polls, because the kernel does not report acknowledgements
	}
}

// abort resets the connection, unless it is closed already, and gives its slot back. The kernel drops what the client
// does not have.
func (c *conn) abort() {
	c.tcp.SetLinger(0)
	c.tcp.Close()
	c.listener.remove(c)
}
