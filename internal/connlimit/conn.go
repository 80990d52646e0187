package connlimit

import (
	"container/list"
	"errors"
	"net"
	"sync"
	"time"
)

const (
	// maxHeaderLines bounds a request's header, because net/http needs many times the memory of short
	// lines. Apache and Tomcat allow 100 too.
	maxHeaderLines = 100

	// stalledAfter is how long a response may take when slots are needed. One that takes longer has a
	// client that does not read, because a handler takes microseconds and the kernel takes most
	// responses at once. With 250 ms, 5,000 such clients hid /health for more than five seconds.
	stalledAfter = 100 * time.Millisecond

	lingerTime = 2 * time.Second // how long a closed connection waits until its client closes it too

	newFor = 250 * time.Millisecond // how long the first request of a connection may be on its way
)

var errTooManyLines = errors.New("the request's header has too many lines")

// state is what a connection does.
type state int

const (
	starting   state = iota // its goroutine has not run yet
	reading                 // waits for a request or for the rest of one
	responding              // from the end of a request's header until the kernel has taken the response
	closing                 // waits until the client has taken the last response
	evicted
)

// conn is a connection of a Listener.
type conn struct {
	*net.TCPConn
	accepted time.Time
	element  *list.Element

	mu        sync.Mutex
	state     state
	since     time.Time // when the state began
	responded bool      // it has begun a response
	completed bool      // it has completed one since evict last looked

	requests int  // that have arrived and have no response yet
	lines    int  // of the header that is arriving, with its request line
	inLine   bool // a part of the next line has arrived
}

// enter changes the state, unless the connection was evicted, and reports whether it did.
func (c *conn) enter(next state) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == evicted {
		return false
	}
	if next == responding {
		c.responded = true
		c.requests--
	}
	if c.state == responding {
		c.completed = true
	}
	c.state, c.since = next, time.Now()
	return true
}

// Read reads from the connection and counts the lines and requests that arrive. It ends a request
// whose header has too many lines.
func (c *conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	state, lines := c.state, c.lines
	c.mu.Unlock()
	switch {
	case lines > 1+maxHeaderLines:
		return 0, errTooManyLines
	case state == starting:
		c.enter(reading)
	case state == responding && len(p) > 1:
		// While a handler runs, net/http reads ahead by one byte. A longer read is of the body, which
		// net/http drops after the response and before it closes the connection.
		c.enter(closing)
	}
	n, err := c.TCPConn.Read(p)
	if n > 0 {
		n = c.count(p[:n])
	}
	return n, err
}

// count returns the length of p up to the first line too many.
func (c *conn) count(p []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == closing {
		return len(p)
	}
	for i, b := range p {
		switch {
		case b == '\r':
		case b != '\n':
			c.inLine = true
		case c.inLine:
			c.inLine = false
			c.lines++
			if c.lines > 1+maxHeaderLines {
				return i
			}
		case c.lines > 0: // an empty line ends the header
			c.lines = 0
			c.requests++
		}
	}
	return len(p)
}

// Close closes the connection. After a response it first waits until the client has closed its side,
// because the response is in the kernel's memory until then, and the slot must stay taken.
func (c *conn) Close() error {
	if c.enter(closing) && c.responded {
		c.CloseWrite()
		c.SetReadDeadline(time.Now().Add(lingerTime))
		c.TCPConn.Read(make([]byte, 1))
		c.SetLinger(0) // the kernel drops what the client has not taken
	}
	return c.TCPConn.Close()
}

// evict closes the connection and reports whether it did. It spares a connection whose time has not
// come, and one that has completed a response since the last call.
func (c *conn) evict(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	wait := patience
	switch {
	case c.state == starting || c.state == evicted:
		return false
	case c.state != closing && c.completed:
		c.completed = false
		return false
	case c.state == responding:
		wait = stalledAfter
	}
	if now.Sub(c.since) < wait {
		return false
	}
	c.state, c.since = evicted, now
	c.SetLinger(0)
	c.TCPConn.Close()
	return true
}

// ending reports whether the connection was just evicted and its goroutine has not ended yet, which takes
// a while if the process gets little processor time.
func (c *conn) ending(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state == evicted && now.Sub(c.since) < stalledAfter
}

// inFlight reports whether a request, or a part of one, has arrived without a response yet or may be
// on its way.
func (c *conn) inFlight() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state {
	case starting, reading:
		return c.requests > 0 || c.lines > 0 || c.inLine || !c.responded && time.Since(c.accepted) < newFor
	}
	return c.state == responding
}
