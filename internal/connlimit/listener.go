// Package connlimit bounds the open connections of an HTTP server, because each of them costs memory,
// and waits for the requests in flight when the server stops. It does not limit how often a client
// asks, or from which address.
package connlimit

import (
	"container/list"
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// patience is how long a new connection waits for a slot before others are evicted. It is also how long a
// connection must have waited for its client before it can be evicted. With 25 ms, 1,000 clients in 32 MiB
// lost 2.7 of 1,000 requests, with 40 ms 0.6.
// With 50 ms, a flood of 5,000 clients in 32 MiB would hide /health for more than a second.
const patience = 40 * time.Millisecond

// Listener is a TCP listener with a bounded number of slots, one for each open connection. When all slots
// are taken, a new connection waits for one, and while it waits, each response closes its connection. If
// no slot comes free within patience, connections that complete no requests are evicted.
type Listener struct {
	*net.TCPListener
	log     *slog.Logger
	slots   chan struct{} // has one element for each open connection
	full    atomic.Bool   // a new connection waits for a slot
	warning atomic.Bool   // evict's warning is being written

	mu        sync.Mutex
	conns     *list.List // of *conn; evict looks at the front first
	batch     int        // how many connections the next evict may close
	evictedAt time.Time
}

// New returns a Listener that accepts from listener and has that many slots.
func New(listener *net.TCPListener, slots int, log *slog.Logger) *Listener {
	setBuffers(listener)
	return &Listener{
		TCPListener: listener,
		log:         log,
		slots:       make(chan struct{}, slots),
		conns:       list.New(),
	}
}

// Serve serves the connections with server until accepting fails, which it does once Drain has closed the
// listener. It sets server.ConnState and wraps server.Handler. The handler must not read a request's body,
// and must set "Connection: close" if there is one, because a read of the body is taken to mean that the
// response has been sent.
func (l *Listener) Serve(server *http.Server) error {
	handler := server.Handler
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.full.Load() {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	})
	server.ConnState = func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateActive: // net/http has read a header, or gives up on one
			c.(*conn).enter(responding)
		case http.StateIdle: // the kernel has taken the response
			c.(*conn).enter(busy)
		case http.StateClosed:
			l.remove(c.(*conn))
		}
	}
	return server.Serve(l)
}

// Accept waits for the next connection and for a slot. Meanwhile, Drain knows about the connection.
func (l *Listener) Accept() (net.Conn, error) {
	tcp, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	c := &conn{TCPConn: tcp}
	l.mu.Lock()
	c.element = l.conns.PushBack(c)
	l.mu.Unlock()
	l.acquireSlot()
	return c, nil
}

func (l *Listener) acquireSlot() {
	select {
	case l.slots <- struct{}{}:
		return
	default:
	}
	l.full.Store(true)
	defer l.full.Store(false)
	for {
		select {
		case l.slots <- struct{}{}:
			return
		case <-time.After(patience):
			l.evict()
		}
	}
}

func (l *Listener) remove(c *conn) {
	l.mu.Lock()
	l.conns.Remove(c.element)
	l.mu.Unlock()
	<-l.slots
}

// evict closes connections by second chance (the CLOCK algorithm): one that has completed a request
// since evict last looked at it is spared. The first call closes one connection, and each call within a
// second of the last one four times as many. So one new client costs one idle client its connection, and
// a flood of 5,000 clients in 32 MiB is over within two seconds.
func (l *Listener) evict() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	first := now.Sub(l.evictedAt) > time.Second
	if first {
		l.batch = 1
	}
	closed := 0
	for looks := l.conns.Len(); looks > 0 && closed < l.batch; looks-- {
		e := l.conns.Front()
		l.conns.MoveToBack(e)
		if e.Value.(*conn).evict(now) {
			closed++
		}
	}
	if closed == 0 {
		return
	}
	l.evictedAt, l.batch = now, min(4*l.batch, cap(l.slots))
	if first && l.warning.CompareAndSwap(false, true) {
		go func() { // because a log that nobody reads must not stop the listener
			l.log.Warn("all connection slots are taken; closing connections that complete no requests", "slots", cap(l.slots))
			l.warning.Store(false)
		}()
	}
}

// Drain closes the listener and waits until no request is in flight and the clients whose connections
// close have the last responses, or ctx ends. It returns how many requests are in flight then.
func (l *Listener) Drain(ctx context.Context) int {
	l.Close()
	ticker := time.NewTicker(5 * time.Millisecond) // http.Server.Shutdown polls too
	defer ticker.Stop()
	for l.count((*conn).inFlight)+l.count((*conn).undelivered) > 0 {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return l.count((*conn).inFlight)
		}
	}
	return 0
}

// count returns the number of connections for which match returns true.
func (l *Listener) count(match func(*conn) bool) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := l.conns.Front(); e != nil; e = e.Next() {
		if match(e.Value.(*conn)) {
			n++
		}
	}
	return n
}
