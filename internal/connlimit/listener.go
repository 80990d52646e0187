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

const (
	// patience is how long a new connection waits for a slot before others are evicted, and how long
	// these must have waited for a request. A request that is on its way arrives sooner.
	patience = 25 * time.Millisecond
	ticks    = 5 // in patience

	logPeriod = time.Minute // bounds the log of a flood to one line in this time
)

// Listener is a TCP listener with a bounded number of slots, one for each open connection. While all
// slots are taken, a new connection waits for one, and each response closes its connection. If no
// slot comes free, connections that complete no requests are evicted.
type Listener struct {
	*net.TCPListener
	log     *slog.Logger
	slots   chan struct{} // has one element for each connection whose goroutine has not ended
	waiting atomic.Bool   // a new connection waits for a slot
	served  chan struct{} // is closed when Serve returns
	ended   chan struct{} // receives when a response or a connection has ended

	mu        sync.Mutex
	conns     *list.List // of *conn; evict looks at the front first
	batch     int        // how many connections evict closed last
	evictedAt time.Time
	loggedAt  time.Time
}

// New returns a Listener that accepts from listener and holds at most max connections.
func New(listener *net.TCPListener, max int, log *slog.Logger) *Listener {
	setBuffers(listener)
	return &Listener{
		TCPListener: listener,
		log:         log,
		slots:       make(chan struct{}, max),
		served:      make(chan struct{}),
		ended:       make(chan struct{}, 1),
		conns:       list.New(),
	}
}

// Serve serves the connections with server until Drain, or until accepting fails. It sets
// server.ConnState. Handlers must not read the request's body.
func (l *Listener) Serve(server *http.Server) error {
	defer close(l.served)
	handler := server.Handler
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.waiting.Load() {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	})
	server.ConnState = func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateActive: // the request's header has been read
			c.(*conn).enter(responding)
		case http.StateIdle: // the kernel has taken the response
			c.(*conn).enter(reading)
		case http.StateClosed:
			l.release(c.(*conn))
		}
		select {
		case l.ended <- struct{}{}:
		default:
		}
	}
	return server.Serve(l)
}

// Drain closes the listener and waits until no request is in flight or ctx ends. It returns how many
// requests are in flight then.
func (l *Listener) Drain(ctx context.Context) int {
	l.Close()
	served, noneNew := l.served, time.After(newFor)
	for {
		n := l.inFlight()
		if n == 0 && served == nil {
			return 0
		}
		select {
		case <-served: // now conns has every connection that was accepted
			served = nil
		case <-noneNew:
		case <-l.ended:
		case <-ctx.Done():
			return n
		}
	}
}

func (l *Listener) inFlight() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := l.conns.Front(); e != nil; e = e.Next() {
		if e.Value.(*conn).inFlight() {
			n++
		}
	}
	return n
}

// Accept waits for the next connection and for a slot.
func (l *Listener) Accept() (net.Conn, error) {
	tcp, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	l.acquire()
	c := &conn{TCPConn: tcp, accepted: time.Now()}
	l.mu.Lock()
	c.element = l.conns.PushBack(c)
	l.mu.Unlock()
	return c, nil
}

func (l *Listener) acquire() {
	select {
	case l.slots <- struct{}{}:
		return
	default:
	}
	l.waiting.Store(true)
	defer l.waiting.Store(false)
	// In several ticks, because a ticker drops those that nobody receives. So patience does not run out
	// while the process itself gets no processor time.
	ticker := time.NewTicker(patience / ticks)
	defer ticker.Stop()
	for tick := 1; ; {
		select {
		case l.slots <- struct{}{}:
			return
		case <-ticker.C:
			if tick%ticks == 0 {
				l.evict()
			}
			tick++
		}
	}
}

func (l *Listener) release(c *conn) {
	l.mu.Lock()
	l.conns.Remove(c.element)
	l.mu.Unlock()
	<-l.slots
}

// evict closes connections by second chance (the CLOCK algorithm): one that has completed a request
// since evict last looked at it is spared. It closes one connection, and within a second twice as
// many each time, up to three quarters of the slots. So a new client costs one idle client its connection,
// and a flood of 5,000 clients is over within seconds.
func (l *Listener) evict() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.batch = min(2*l.batch, cap(l.slots)*3/4)
	if l.batch == 0 || now.Sub(l.evictedAt) > time.Second {
		l.batch = 1
	}
	for e := l.conns.Back(); e != nil; e = e.Prev() {
		if e.Value.(*conn).ending(now) {
			return // a slot is about to come free
		}
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
	l.evictedAt = now
	if now.Sub(l.loggedAt) > logPeriod {
		l.loggedAt = now
		// In a goroutine, because a log that nobody reads must not stop the listener.
		go l.log.Warn("all connection slots are taken; closing connections that complete no requests", "slots", cap(l.slots))
	}
}
