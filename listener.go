package main

import (
	"bytes"
	"container/list"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

const (
	// maxConnections are held at once. Each costs up to about 25 KB (a goroutine and net/http's
	// buffers), so that all of them fit, with the garbage collector's share, in 32 MiB. The price:
	// with more clients than this at once, the oldest connection that waits is closed for the
	// newest, and a client that reuses it has to connect again.
	maxConnections = 512

	// smallRequest is how much of a request, in bytes, is read at any time: all of a health check, and
	// more. To be read on, a request needs one of maxLargeRequests places, until it is answered.
	// Without that, 512 connections are no bound on memory: net/http makes some 350 KB of 16 KiB of
	// short header fields. The price: more large requests than this at once wait for one another.
	smallRequest     = 512
	maxLargeRequests = 8

	// maxHeaderLines bounds what a header makes net/http do: after more lines than this, it is not read
	// on, and answered with 400. A hundred is also the bound of Apache and Tomcat.
	maxHeaderLines = 100

	// largeFor is how long a large request may be coming in while others wait for its place: longer
	// than TCP takes to send again what was lost, 200 ms at least in Linux. Then its connection is
	// closed.
	largeFor = 250 * time.Millisecond

	// stalledAfter is how long an answer counts as being given. A handler takes microseconds, and
	// an answer fits into socketBuffer: one that still writes after this has a peer that asks for
	// more and does not read.
	stalledAfter = 250 * time.Millisecond

	// socketBuffer bounds, each way, the kernel's memory for a connection, in bytes (Linux doubles
	// it for its own bookkeeping). It is charged to the container too. The defaults allow megabytes,
	// for a header of 16 KiB and an answer of one.
	socketBuffer = 16 << 10

	// freshFor is how long a new connection that has sent nothing yet holds up the stop, because
	// its request may be on its way.
	freshFor = 250 * time.Millisecond

	// minAge is how long a new connection cannot be closed for another, so that in a burst its
	// request has the time to arrive. It bounds the rate of new connections, when all are taken, to
	// maxConnections / minAge: about 20,000 a second.
	minAge = 25 * time.Millisecond

	// evictionLogPeriod bounds the log of a flood: one line in this time.
	evictionLogPeriod = time.Minute
)

// connState is where a connection stands with its current request.
type connState int

const (
	fresh     connState = iota // nothing received yet
	receiving                  // a part of a request
	answering                  // in the handler, or the answer not yet with the kernel
	answered                   // a body is still being read and dropped
	idle                       // between requests
	gone                       // closed for another
)

// limiter is a listener that holds a fixed number of connections and, when all are taken, closes
// the oldest one that is not being answered before it gives out the next: slow and silent peers
// lose their place, new clients and health checks get in. It also knows which connections have a
// request in flight, which is what a clean stop waits for.
//
// A connection counts until net/http's goroutine for it has ended, so the bound is one on memory.
type limiter struct {
	*net.TCPListener
	log        *slog.Logger
	slots      chan struct{} // holds one element a connection
	largeSlots chan struct{} // the same for large requests

	mu         sync.Mutex
	conns      list.List                  // of *limitedConn, oldest first
	large      map[*limitedConn]time.Time // those with a large request, and since when
	lastLogged time.Time
}

// limitedConn is one of the limiter's connections.
type limitedConn struct {
	*net.TCPConn
	limiter  *limiter
	accepted time.Time
	place    *list.Element
	evicted  chan struct{} // closed when it is

	mu    sync.Mutex
	state connState
	since time.Time // when answering began
	room  int       // bytes that the request may still have without a large one's place
	large bool      // it has one
	lines int       // of the request, so far
}

// limit returns a limiter of listener, for max connections.
func limit(listener *net.TCPListener, max int, log *slog.Logger) *limiter {
	return &limiter{
		TCPListener: listener,
		log:         log,
		slots:       make(chan struct{}, max),
		largeSlots:  make(chan struct{}, maxLargeRequests),
		large:       make(map[*limitedConn]time.Time),
	}
}

// attach makes server use the limiter. It has to be done before server serves it.
func (l *limiter) attach(server *http.Server) {
	server.Handler = l.answer(server.Handler)
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, c)
	}
	server.ConnState = func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateIdle: // the answer is with the kernel
			l.releaseLarge(c.(*limitedConn))
			c.(*limitedConn).set(idle)
		case http.StateClosed:
			l.release(c.(*limitedConn))
		}
	}
}

// Accept waits for the next connection and for a place for it.
func (l *limiter) Accept() (net.Conn, error) {
	conn, err := l.AcceptTCP()
	for (errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)) && l.evict() {
		time.Sleep(time.Millisecond) // for the file descriptor to come free
		conn, err = l.AcceptTCP()
	}
	if err != nil {
		return nil, err
	}
	l.take()
	conn.SetReadBuffer(socketBuffer)
	conn.SetWriteBuffer(socketBuffer)
	c := &limitedConn{TCPConn: conn, limiter: l, accepted: time.Now(), evicted: make(chan struct{}), room: smallRequest}
	l.mu.Lock()
	c.place = l.conns.PushBack(c)
	l.mu.Unlock()
	return c, nil
}

// take waits for a place, and makes one where none is free.
func (l *limiter) take() {
	for {
		select {
		case l.slots <- struct{}{}:
			return
		default:
		}
		patience := 5 * time.Millisecond // all are new or being answered; soon one is not
		if l.evict() {
			patience = 100 * time.Millisecond // its goroutine has to notice, with little CPU perhaps
		}
		timer := time.NewTimer(patience)
		select {
		case l.slots <- struct{}{}:
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// evict closes the oldest connection that may be closed and reports whether there was one. Its
// place comes free when its goroutine ends.
func (l *limiter) evict() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for place := l.conns.Front(); place != nil; place = place.Next() {
		c := place.Value.(*limitedConn)
		if time.Since(c.accepted) < minAge {
			return false // so are all that follow
		}
		if !c.closeUnlessAnswering() {
			continue
		}
		l.conns.Remove(place)
		l.warn("connections are exhausted; closing the oldest for the newest", cap(l.slots))
		return true
	}
	return false
}

// warn logs that there are no more than max of something, once in evictionLogPeriod. l.mu is held.
func (l *limiter) warn(message string, max int) {
	if now := time.Now(); now.Sub(l.lastLogged) >= evictionLogPeriod {
		l.lastLogged = now
		// Not here: a log that nobody reads must not stop the listener.
		go l.log.Warn(message, "max", max)
	}
}

// release gives c's places back.
func (l *limiter) release(c *limitedConn) {
	l.releaseLarge(c)
	l.mu.Lock()
	l.conns.Remove(c.place) // nothing happens where evict was first
	l.mu.Unlock()
	<-l.slots
}

// takeLarge waits for a large request's place for c.
func (l *limiter) takeLarge(c *limitedConn) error {
	select {
	case l.largeSlots <- struct{}{}:
	default:
		if err := l.awaitLarge(c); err != nil {
			return err
		}
	}
	c.large = true
	l.mu.Lock()
	l.large[c] = time.Now()
	l.mu.Unlock()
	return nil
}

// awaitLarge waits while all of these places are taken, and closes the connections that have had
// theirs for longer than largeFor and are still sending.
func (l *limiter) awaitLarge(c *limitedConn) error {
	timeout := time.NewTimer(readHeaderTimeout)
	defer timeout.Stop()
	ticker := time.NewTicker(largeFor)
	defer ticker.Stop()
	for {
		select {
		case l.largeSlots <- struct{}{}:
			return nil
		case <-c.evicted:
			return net.ErrClosed
		case <-timeout.C:
			return os.ErrDeadlineExceeded
		case <-ticker.C:
		}
		l.mu.Lock()
		for holder, since := range l.large {
			if time.Since(since) > largeFor && holder.closeUnlessAnswering() {
				l.warn("large requests wait; closing those that come in slowly", cap(l.largeSlots))
			}
		}
		l.mu.Unlock()
	}
}

// releaseLarge gives a large request's place back, where c has one.
func (l *limiter) releaseLarge(c *limitedConn) {
	if c.large {
		c.large = false
		l.mu.Lock()
		delete(l.large, c)
		l.mu.Unlock()
		<-l.largeSlots
	}
}

// inFlight counts the connections whose request is not answered yet, and those so new that their
// first request may be on its way.
func (l *limiter) inFlight() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for place := l.conns.Front(); place != nil; place = place.Next() {
		c := place.Value.(*limitedConn)
		c.mu.Lock()
		if c.state == receiving || c.state == answering || c.state == fresh && time.Since(c.accepted) < freshFor {
			n++
		}
		c.mu.Unlock()
	}
	return n
}

var errManyLines = errors.New("a header of too many lines")

// Read reads a part of a request, and notes its beginning.
func (c *limitedConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	state, room, lines := c.state, c.room, c.lines
	c.mu.Unlock()
	// While a request is being answered, what comes is its body, and net/http watches for the peer's
	// end, from before the handler on, by a read of one byte.
	if state != answering && state != answered && len(p) > 1 {
		if l := c.limiter; state == idle && len(l.slots) > cap(l.slots)/4 {
			// A peer that asks on and on must not keep the processor from the others. Here it
			// waits without a request in memory.
			runtime.Gosched()
		}
		if lines > maxHeaderLines {
			return 0, errManyLines
		}
		if room == 0 {
			if !c.large {
				if err := c.limiter.takeLarge(c); err != nil {
					return 0, err
				}
			}
			// No more at once: what net/http reads beyond this request's end, it has of the next.
			room = smallRequest
		}
		p = p[:min(len(p), room)]
	}
	n, err := c.TCPConn.Read(p)
	if n > 0 {
		c.mu.Lock()
		if c.state == idle && n < 4 {
			// net/http waits for four bytes of the next request under its idle timeout.
			c.SetReadDeadline(time.Now().Add(readHeaderTimeout))
		}
		if c.state == fresh || c.state == idle {
			c.state = receiving
		}
		c.room = max(0, c.room-n)
		c.lines += bytes.Count(p[:n], []byte{'\n'})
		c.mu.Unlock()
	}
	return n, err
}

// closeUnlessAnswering closes c and reports whether it did. No answer can begin in between.
func (c *limitedConn) closeUnlessAnswering() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == gone || c.state == answering && time.Since(c.since) < stalledAfter {
		return false
	}
	c.state = gone
	close(c.evicted)
	c.Close()
	return true
}

func (c *limitedConn) set(state connState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == gone {
		return
	}
	c.state = state
	switch state {
	case answering:
		c.since = time.Now()
	case idle:
		c.room, c.lines = smallRequest, 0
	}
}

type connKey struct{}

// answer marks the connection as answering; it is until net/http has written the answer. When places
// get scarce, it sees to it that nobody keeps one by asking on and on: with more than three quarters
// taken, an answer is its connection's last.
func (l *limiter) answer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := r.Context().Value(connKey{}).(*limitedConn)
		c.set(answering)
		if len(l.slots) > cap(l.slots)*3/4 {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
		if r.ContentLength != 0 {
			// Now net/http would read the rest of the body, and only then call the connection idle.
			http.NewResponseController(w).Flush()
			c.set(answered)
		}
	})
}
