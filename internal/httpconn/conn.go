// Package httpconn is the server's end of an HTTP connection. It knows whether the server waits for the
// client, it limits the lines of a header, and it closes when the client has the last response. Package
// connlimit decides how many connections there are.
package httpconn

import (
	"errors"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const (
	// maxHeaderLines bounds a request's header, because for short lines net/http needs many times their size.
	// Apache and Tomcat allow 100 too.
	maxHeaderLines = 100

	// lingerTime is how long Close waits until the client's kernel has the response. It is long, so that slow
	// clients get theirs unless their slots are needed.
	lingerTime = 10 * time.Second

	// uploadTime is how long Close waits for a client that may still be sending. If the connection closed
	// earlier, the client's next packet would reset it, and the client might not read the response.
	uploadTime = 500 * time.Millisecond // as in net/http
)

var errTooManyLines = errors.New("the request's header has too many lines")

// Conn is the server's end of an HTTP connection. net/http reads and closes it.
type Conn struct {
	*net.TCPConn
	linger, upload time.Duration // lingerTime and uploadTime, except in tests

	mu         sync.Mutex
	reading    bool      // net/http waits for the client
	responding bool      // net/http has read a header, and will not read the next one yet
	uploading  bool      // the client may still be sending when the last response has been sent
	closing    bool      // net/http has closed the connection
	since      time.Time // when the last header began, or the first Read; zero before that
	inHeader   bool      // a part of a header has arrived
	lines      int       // complete lines of that header, with the request line
	inLine     bool      // the next line has begun
}

// New returns a Conn that reads from and writes to tcp.
func New(tcp *net.TCPConn) *Conn {
	return &Conn{TCPConn: tcp, linger: lingerTime, upload: uploadTime}
}

// SetState records the state that http.Server.ConnState reports.
func (c *Conn) SetState(state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.responding = state == http.StateActive
}

// Read reads from the connection. It fails when a header has more than maxHeaderLines.
func (c *Conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	if c.lines > 1+maxHeaderLines && !c.responding {
		c.mu.Unlock()
		return 0, errTooManyLines
	}
	c.reading = len(p) > 1 // while a handler runs, net/http reads ahead by one byte
	if c.since.IsZero() {
		c.since = time.Now()
	}
	c.mu.Unlock()

	n, err := c.TCPConn.Read(p)

	c.mu.Lock()
	defer c.mu.Unlock()
	body := c.reading && c.responding
	c.reading = false
	if n == 0 || body {
		return n, err
	}
	if !c.inHeader {
		c.since = time.Now()
	}
	return c.countLines(p[:n]), err
}

// countLines counts the lines of the header in p. It returns how many bytes net/http gets: all of them, or
// those up to the first line too many. It also counts, and may cut off, the start of a body that arrives with
// its header, because no handler reads bodies.
func (c *Conn) countLines(p []byte) (n int) {
	for ; n < len(p) && c.lines <= 1+maxHeaderLines; n++ {
		c.inHeader = true
		switch {
		case p[n] == '\n' && c.inLine:
			c.lines++
			c.inLine = false
		case p[n] == '\n': // an empty line ends the header
			c.inHeader, c.lines = false, 0
		case p[n] != '\r':
			c.inLine = true
		}
	}
	return n
}

// InFlight reports whether the client expects a response: net/http has not begun to read, a part of a
// request has arrived, or the client's kernel does not have the whole response. It does not count a body
// that is still arriving, because no response depends on it.
func (c *Conn) InFlight() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	waits := c.closing || c.reading && (c.responding || !c.inHeader)
	return !waits || c.unacknowledged()
}

// Waiting reports whether the server waits for the client, and when the client's last request began, or
// the server's wait for the first one. The time is zero if the server does not read yet.
func (c *Conn) Waiting() (forClient bool, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reading, c.since
}

// CloseWrite is called by net/http when the client may still be sending. After it, net/http would sleep for
// half a second, which Abort cannot end, so that 5,000 clients that sent the start of a large body hid /health
// for ten seconds. So it panics, which ends net/http's work on the connection, and Close waits instead.
func (c *Conn) CloseWrite() error {
	c.mu.Lock()
	c.uploading = true
	c.mu.Unlock()
	panic(http.ErrAbortHandler)
}

// Close closes the connection when the client's kernel has the whole response, or after lingerTime. Until
// then this kernel's memory holds the response, so the connection must count as open. Without the wait,
// 5,000 clients that never read took 79 MiB in a container of 32 MiB.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.closing = true
	uploading := c.uploading
	c.mu.Unlock()

	began, pause := time.Now(), time.Millisecond
	// After the first time, CloseWrite does nothing, but fails if the connection has ended meanwhile, by Abort or
	// because of the client.
	for c.TCPConn.CloseWrite() == nil {
		waited := time.Since(began)
		if waited > c.linger {
			return c.Abort()
		}
		if !c.unacknowledged() && (waited > c.upload || !uploading) {
			break
		}
		time.Sleep(pause) // polls, because the kernel does not report acknowledgements
		pause = min(2*pause, 32*time.Millisecond)
	}
	return c.TCPConn.Close()
}

// Abort closes the connection at once. The kernel drops what the client does not have. It returns an error
// if the connection is closed already.
func (c *Conn) Abort() error {
	c.SetLinger(0)
	return c.TCPConn.Close()
}

// unacknowledged reports whether the client's kernel lacks a part of what was sent. It asks SIOCOUTQ of
// tcp(7), which has the value of TIOCOUTQ and counts the end of the connection as one byte.
func (c *Conn) unacknowledged() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var bytes int32
	raw.Control(func(fd uintptr) {
		syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&bytes)))
	})
	return bytes > 1
}
