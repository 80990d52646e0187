package connlimit

import (
	"bytes"
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
	// client that does not read, because a handler takes microseconds. With 40 ms, 1,000 clients in 32 MiB
	// and half a CPU lost 6 of 1,000 requests.
	stalledAfter = 100 * time.Millisecond

	newFor     = 250 * time.Millisecond // how long the first request of a connection may be on its way
	lingerTime = 2 * time.Second        // how long a closed connection waits until its client closes it too
)

var errTooManyLines = errors.New("the request's header has too many lines")

type state int

const (
	starting   state = iota // the connection's goroutine has not run yet; its request may be in the kernel
	fresh                   // waits for its first request, or for the rest of it
	idle                    // waits for another request, or for the rest of one
	responding              // from the end of a request's header until the kernel has taken the response
	closing                 // waits until the client has taken the last response
	evicted
)

// conn is a connection of a Listener.
type conn struct {
	*net.TCPConn
	element *list.Element

	mu        sync.Mutex
	state     state
	since     time.Time // when the state began
	completed bool      // a response, since evict last looked

	requests int  // that have arrived and have no response yet
	lines    int  // of the header that is arriving, with its request line
	inLine   bool // a part of the next line has arrived
}

// enter changes the state, unless the connection was evicted, and reports whether it did.
func (c *conn) enter(next state) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.state == evicted:
		return false
	case next == responding:
		c.requests--
	case c.state == responding:
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
		c.enter(fresh)
	case state == responding && len(p) > 1:
		// While a handler runs, net/http reads ahead by one byte. A longer read is of a body, which
		// net/http drops after the response and before it closes the connection.
		c.enter(closing)
	}
	n, err := c.TCPConn.Read(p)
	return c.count(p[:n]), err
}

// count counts the lines and requests in p, unless it is of a body that is dropped. It returns the
// length of p up to the first line too many.
func (c *conn) count(p []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for rest := p; len(rest) > 0 && c.state != closing; {
		line, after, ended := bytes.Cut(rest, []byte("\n"))
		c.inLine = c.inLine || len(bytes.TrimRight(line, "\r")) > 0
		if !ended {
			break
		}
		switch {
		case c.inLine:
			c.inLine = false
			c.lines++
			if c.lines > 1+maxHeaderLines {
				return len(p) - len(after) - 1
			}
		case c.lines > 0: // an empty line ends the header
			c.lines = 0
			c.requests++
		}
		rest = after
	}
	return len(p)
}

// Close closes the connection. It first waits until the client has closed its side, because the last
// response is in the kernel's memory until then, and the slot must stay taken.
func (c *conn) Close() error {
	if c.enter(closing) {
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
	case c.completed && c.state != closing:
		c.completed = false
		return false
	case c.state == responding:
		wait = stalledAfter
	}
	if now.Sub(c.since) < wait {
		return false
	}
	c.state = evicted
	c.SetLinger(0)
	c.TCPConn.Close()
	return true
}

// inFlight reports whether a request, or a part of one, has arrived without a response yet or may be
// on its way.
func (c *conn) inFlight() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state {
	case starting, responding:
		return true
	case fresh, idle:
		return c.requests > 0 || c.lines > 0 || c.inLine || c.state == fresh && time.Since(c.since) < newFor
	}
	return false
}
