package server

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// At its worst, a connection costs 48 KiB in the process and 64 KiB in the kernel: requests that have not
	// been read, and a response that the client does not take. Version 2 of control groups charges both to
	// the container. So MaxConnections × connectionCost + processCost fits, unless minConnections applies.
	connectionCost = 112 << 10 // bytes
	processCost    = 8 << 20   // bytes, with no connection open
	minConnections = 32        // however little memory there is
	maxConnections = 16384     // however much
	reservedFiles  = 16        // file descriptors that are not for connections
	socketBuffer   = 8 << 10   // bytes of each of a connection's two kernel buffers; Linux doubles it

	// lookPeriod is how long a new connection waits before others are looked at, and how long one of these must
	// have waited for its client to be evicted. docs/operations.md says what other periods cost.
	lookPeriod = 30 * time.Millisecond
)

// MaxConnections is the number of connections that fit into memory, in bytes, and into files, a limit on
// file descriptors. A nil pointer means no limit.
func MaxConnections(memory, files *int64) int {
	n := int64(maxConnections)
	if memory != nil {
		n = min(n, max(minConnections, (*memory-processCost)/connectionCost))
	}
	if files != nil {
		n = min(n, max(1, *files-reservedFiles))
	}
	return int(n)
}

// listener is a TCP listener with a bounded number of slots, one for each open connection. When all slots
// are taken, a new connection waits for one. While it waits, each response closes its connection, and
// connections on which nothing happens are evicted.
type listener struct {
	*net.TCPListener
	log        *slog.Logger
	lingerTime time.Duration // lingerTime, except in tests
	slots      chan struct{} // has one element for each open connection
	waiting    atomic.Bool   // a new connection waits for a slot
	draining   atomic.Bool   // the server has been told to stop

	mu        sync.Mutex
	conns     map[*conn]bool // the open connections
	batch     int            // how many connections the next look may evict
	evictedAt time.Time
	warnedAt  time.Time
}

func newListener(tcp *net.TCPListener, slots int, log *slog.Logger) *listener {
	// On the listener, not on each connection, because clients send before Accept returns.
	if raw, err := tcp.SyscallConn(); err == nil {
		raw.Control(setBuffers)
	}
	return &listener{TCPListener: tcp, log: log, lingerTime: lingerTime, slots: make(chan struct{}, slots), conns: map[*conn]bool{}}
}

// Accept waits for the next connection and for a slot.
func (l *listener) Accept() (net.Conn, error) {
	tcp, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	l.acquireSlot()
	c := &conn{Conn: tcp, listener: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c] = true
	return c, nil
}

func (l *listener) acquireSlot() {
	select {
	case l.slots <- struct{}{}:
		return
	default:
	}
	l.waiting.Store(true)
	defer l.waiting.Store(false)
	ticker := time.NewTicker(lookPeriod)
	defer ticker.Stop()
	for {
		select {
		case l.slots <- struct{}{}:
			return
		case <-ticker.C:
			l.look()
		}
	}
}

// look evicts connections that have waited for their clients since before the last look: one at first, and then
// up to four times as many as the last time, until it was no more needed for a second. So one new client costs
// one idle client its connection, and a flood of thousands is soon over.
func (l *listener) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.evictedAt) > time.Second {
		l.batch = 1
	}
	evicted := 0
	for c := range l.conns {
		if p := c.phase(); p == accepted || p == working { // because the client cannot make it go on
			continue
		}
		if c.seen.Swap(true) && evicted < l.batch && c.abort() == nil {
			evicted++
		}
	}
	if evicted == 0 {
		return
	}
	l.evictedAt, l.batch = now, 4*evicted
	if now.Sub(l.warnedAt) > time.Minute {
		l.warnedAt = now
		l.log.Warn("all connection slots are taken; closing connections that complete no requests", "slots", cap(l.slots))
	}
}

// remove gives the slot of a connection back.
func (l *listener) remove(c *conn) {
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
	<-l.slots
}

// wrap closes connections when they must not be kept, and lets no request's body hold up its response.
func (l *listener) wrap(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hasBody := r.ContentLength != 0
		// A server that drains closes its connections so that clients reconnect elsewhere. With a body,
		// net/http would read it before it sent the response.
		if hasBody || l.draining.Load() || l.waiting.Load() {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
		if hasBody {
			// Otherwise net/http would read what is left of the body, or sleep for half a second, during which
			// the slot cannot be given to anybody else. conn.Close waits for the client instead.
			control := http.NewResponseController(w)
			control.Flush()
			control.SetReadDeadline(time.Now())
			panic(http.ErrAbortHandler)
		}
	})
}

// wait returns when served has a value and no request is in flight, nor likely to arrive, or when ctx ends.
// It returns how many requests are in flight then.
func (l *listener) wait(ctx context.Context, served <-chan error) (inFlight int) {
	began := time.Now()
	select {
	case <-served: // from now on, no connection is accepted
	case <-ctx.Done():
	}
	ticker := time.NewTicker(5 * time.Millisecond) // http.Server.Shutdown polls too
	defer ticker.Stop()
	for {
		open, lingering, inFlight := l.count()
		finished := open == 0 || inFlight == 0 && lingering == 0 && time.Since(began) >= firstRequestWait
		if ctx.Err() != nil || finished {
			return inFlight
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

// count returns how many connections are open. On some of these a request is in flight, and others have been
// closed so recently that their clients may still be reading the response.
func (l *listener) count() (open, lingering, inFlight int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		switch c.phase() {
		case accepted, header, working, sending:
			inFlight++
		case closed:
			if time.Since(c.closedAt) < stopLingerTime {
				lingering++
			}
		}
	}
	return len(l.conns), lingering, inFlight
}
