package connlimit

import (
	"container/list"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const (
	// maxHeaderLines bounds a request's header, because net/http needs many times the memory of short
	// lines. Apache and Tomcat allow 100 too.
	maxHeaderLines = 100

	// stalledAfter is how long a response may take when slots are needed. A handler takes microseconds, so
	// a response that takes longer waits for a client that does not read, or for the log. With 40 ms,
	// 1,000 clients in 32 MiB and half a CPU lost 6 of 1,000 requests.
	stalledAfter = 100 * time.Millisecond

	// firstRequestWait is how long Drain waits for the first request of a connection, because a client
	// that has just connected is about to send it. Of 20 clients that sent theirs 2 ms after they had
	// connected, a stop cut off 2, and 12 without this wait.
	firstRequestWait = 250 * time.Millisecond

	// lingerTime is how long Close waits for the client.
	lingerTime = 2 * time.Second
)

var errTooManyLines = errors.New("the request's header has too many lines")

type state int

const (
	busy       state = iota // the connection waits for its slot, or net/http works on what it has read
	waiting                 // net/http waits for a request, or for the rest of its header
	responding              // from the end of the header until the kernel has taken the response
	closing                 // until the client has taken the last response
	evicted
)

// conn is a connection of a Listener.
type conn struct {
	*net.TCPConn
	element *list.Element

	mu        sync.Mutex
	state     state
	since     time.Time // when the state, or the header that is arriving, began; zero until the first Read
	requested bool      // a request has arrived
	completed bool      // a response was completed since evict last looked
	lines     int       // lines of the header that is arriving, with its request line
	inLine    bool      // the next line has begun
}

// enter changes the state, unless the connection was evicted, and reports whether it did.
func (c *conn) enter(next state) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == evicted {
		return false
	}
	c.requested = c.requested || next == responding
	c.completed = c.completed || c.state == responding
	if next != waiting || !c.inHeader() { // the rest of a header is no new request
		c.since = time.Now()
	}
	c.state = next
	return true
}

// Read reads from the connection. It fails once a header has too many lines.
func (c *conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	state, lines := c.state, c.lines
	c.mu.Unlock()
	switch {
	case lines > 1+maxHeaderLines:
		return 0, errTooManyLines
	case state == busy:
		c.enter(waiting)
	case state == responding && len(p) > 1:
		// While a handler runs, net/http reads ahead by one byte. A longer read is of a body, which
		// net/http drops after the response and before it closes the connection.
		c.enter(closing)
	}
	n, err := c.TCPConn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == closing {
		return n, err
	}
	if c.state == waiting && n > 0 {
		c.state = busy
		if !c.inHeader() {
			c.since = time.Now()
		}
	}
	return c.countLines(p[:n]), err
}

// countLines counts the lines of the header in p. It returns how many bytes of p Read may return: all of
// them, or those up to the end of the first line too many.
func (c *conn) countLines(p []byte) (n int) {
	for ; n < len(p) && c.lines <= 1+maxHeaderLines; n++ {
		switch {
		case p[n] == '\n' && c.inLine:
			c.lines++
			c.inLine = false
		case p[n] == '\n': // an empty line ends the header
			c.lines = 0
		case p[n] != '\r':
			c.inLine = true
		}
	}
	return n
}

// inHeader reports whether a part of a header has arrived.
func (c *conn) inHeader() bool { return c.lines > 0 || c.inLine }

// Close closes the connection. First it waits, for at most lingerTime, until the client has the whole
// response and has closed its side or sent more. It waits because the kernel's memory holds what the client
// does not have yet, and the slot must stay taken meanwhile. Without the wait, 5,000 clients that never read
// took 79 MiB in a container of 32 MiB.
func (c *conn) Close() error {
	if c.enter(closing) && c.CloseWrite() == nil {
		deadline := time.Now().Add(lingerTime)
		c.SetReadDeadline(deadline)
		_, err := c.TCPConn.Read(make([]byte, 1))
		for (err == nil || err == io.EOF) && c.unacknowledged() && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond) // polls, because the kernel does not report acknowledgements
		}
		c.SetLinger(0) // the kernel drops what the client does not have
	}
	return c.TCPConn.Close()
}

// unacknowledged reports whether the client lacks a part of what was sent, apart from the end of the
// connection, which counts as one byte: SIOCOUTQ in tcp(7), which has the value of TIOCOUTQ.
func (c *conn) unacknowledged() bool {
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

// evict closes the connection and reports whether it did. It spares a connection that has not been in its
// state for long enough, and one that has completed a response since the last call, unless it is closing.
func (c *conn) evict(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	allowed := patience
	if c.state == busy || c.state == responding { // net/http answers some bad requests without StateActive
		allowed = stalledAfter
	}
	switch {
	case c.state == evicted || c.since.IsZero() || now.Sub(c.since) < allowed:
		return false
	case c.completed && c.state != closing:
		c.completed = false
		return false
	}
	c.state = evicted
	c.SetLinger(0)
	c.TCPConn.Close()
	return true
}

// inFlight reports whether the client expects a response: a request or a part of one has arrived, or the
// first request may be on its way.
func (c *conn) inFlight() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state {
	case busy, responding:
		return true
	case waiting:
		return c.inHeader() || !c.requested && time.Since(c.since) < firstRequestWait
	}
	return false
}

// undelivered reports whether the connection closes and the client lacks a part of the last response.
func (c *conn) undelivered() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state == closing && c.unacknowledged()
}
