package main

import (
	"container/list"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
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
)

// limiter is a listener that holds a fixed number of connections and, when all are taken, closes
// the oldest one that is not being answered before it gives out the next: slow and silent peers
// lose their place, new clients and health checks get in. It also knows which connections have a
// request in flight, which is what a clean stop waits for.
//
// A connection counts until net/http's goroutine for it has ended, so the bound is one on memory.
type limiter struct {
	*net.TCPListener
	log   *slog.Logger
	slots chan struct{} // holds one element a connection

	mu         sync.Mutex
	conns      list.List // of *limitedConn, oldest first
	lastLogged time.Time
}

// limitedConn is one of the limiter's connections.
type limitedConn struct {
	*net.TCPConn
	accepted time.Time
	place    *list.Element

	mu    sync.Mutex
	state connState
	since time.Time // when answering began
}

// limit returns a limiter of listener, for max connections.
func limit(listener *net.TCPListener, max int, log *slog.Logger) *limiter {
	return &limiter{TCPListener: listener, log: log, slots: make(chan struct{}, max)}
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
			c.(*limitedConn).set(idle)
			if len(l.slots) > cap(l.slots)/4 {
				// A peer that asks on and on must not keep the processor from the others.
				runtime.Gosched()
			}
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
	c := &limitedConn{TCPConn: conn, accepted: time.Now()}
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
		if now := time.Now(); now.Sub(l.lastLogged) >= evictionLogPeriod {
			l.lastLogged = now
			// Not here: a log that nobody reads must not stop the listener.
			go l.log.Warn("connections are exhausted; closing the oldest for the newest", "max", cap(l.slots))
		}
		return true
	}
	return false
}

// release gives c's place back.
func (l *limiter) release(c *limitedConn) {
	l.mu.Lock()
	l.conns.Remove(c.place) // nothing happens where evict was first
	l.mu.Unlock()
	<-l.slots
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

// Read notes the beginning of a request.
func (c *limitedConn) Read(p []byte) (int, error) {
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
		c.mu.Unlock()
	}
	return n, err
}

// closeUnlessAnswering closes c and reports whether it did. No answer can begin in between.
func (c *limitedConn) closeUnlessAnswering() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == answering && time.Since(c.since) < stalledAfter {
		return false
	}
	c.Close()
	return true
}

func (c *limitedConn) set(state connState) {
	c.mu.Lock()
	c.state = state
	if state == answering {
		c.since = time.Now()
	}
	c.mu.Unlock()
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
