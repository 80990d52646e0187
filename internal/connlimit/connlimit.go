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
	"syscall"
	"time"

	"devops-info-service/internal/httpconn"
)

const (
	// At its worst, a connection costs 48 KiB in the process and 64 KiB in the kernel: requests that have not
	// been read, and a response that the client does not take. Version 2 of control groups charges both to
	// the container. So Max × connectionCost + processCost fits, unless minConnections applies.
	connectionCost = 112 << 10 // bytes
	processCost    = 8 << 20   // bytes, with no connection open
	minConnections = 32        // however little memory there is
	maxConnections = 16384     // however much
	reservedFiles  = 16        // file descriptors that are not for connections
	socketBuffer   = 8 << 10   // bytes of each of a connection's two kernel buffers; Linux doubles it

	// patience is how long a new connection waits for a slot before others are evicted, and how long ago the
	// last request of an evicted one must have begun. With 25 ms, 0.3 % of the requests of 1,000 clients
	// failed, in 32 MiB with half a CPU. With 50 ms, 5,000 clients hid /health for more than a second.
	patience = 40 * time.Millisecond

	// stalledAfter is how long a request may take when slots are needed. A handler takes microseconds, so
	// one that takes longer waits for a client that does not read, or for the log. With 40 ms, 0.4 % of
	// the requests of the same clients failed.
	stalledAfter = 100 * time.Millisecond

	// firstRequestWait is how long Drain waits for requests on open connections, because clients that have just
	// connected are about to send one. Of 20 clients that sent theirs after 2 ms, a stop cut off 2, and 12
	// without this wait.
	firstRequestWait = 250 * time.Millisecond
)

// Max is the number of connections that fit into memory, in bytes, and into files, a limit on file
// descriptors. A nil pointer means no limit.
func Max(memory, files *int64) int {
	n := int64(maxConnections)
	if memory != nil {
		n = min(n, max(minConnections, (*memory-processCost)/connectionCost))
	}
	if files != nil {
		n = min(n, max(1, *files-reservedFiles))
	}
	return int(n)
}

// Listener is a TCP listener with a bounded number of slots, one for each open connection. When all slots
// are taken, a new connection waits for one, and while it waits, each response closes its connection. If
// no slot comes free within patience, connections that complete no requests are evicted.
type Listener struct {
	*net.TCPListener
	log     *slog.Logger
	slots   chan struct{} // has one element for each open connection
	waiting atomic.Bool   // a new connection waits for a slot

	mu        sync.Mutex
	conns     *list.List // of *conn; evict looks at the front first
	batch     int        // how many connections evict may close
	evictedAt time.Time
	warnedAt  time.Time
}

// conn is an open connection.
type conn struct {
	*httpconn.Conn
	element   *list.Element // in Listener.conns
	completed atomic.Bool   // it has completed a request since evict last spared it
}

// New returns a Listener that accepts from listener and has that many slots.
func New(listener *net.TCPListener, slots int, log *slog.Logger) *Listener {
	// The buffer sizes are set on the listener, because clients send before Accept returns. When they were set
	// on each connection, 5,000 clients that never read took 25 MB of the kernel's memory.
	if raw, err := listener.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, socketBuffer)
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, socketBuffer)
		})
	}
	return &Listener{TCPListener: listener, log: log, slots: make(chan struct{}, slots), conns: list.New()}
}

// Serve serves the connections with server until accepting fails, which it does once Drain has closed the
// listener. It sets server.ConnState and wraps server.Handler.
func (l *Listener) Serve(server *http.Server) error {
	handler := server.Handler
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.waiting.Load() {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	})
	server.ConnState = func(netConn net.Conn, state http.ConnState) {
		c := netConn.(*conn)
		c.SetState(state)
		switch state {
		case http.StateIdle:
			c.completed.Store(true)
		case http.StateClosed:
			l.remove(c)
		}
	}
	return server.Serve(l)
}

// Accept waits for the next connection and for a slot. The connection is in conns before it has a slot,
// because Drain must count it.
func (l *Listener) Accept() (net.Conn, error) {
	tcp, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: httpconn.New(tcp)}
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
		l.waiting.Store(true)
		defer l.waiting.Store(false)
	}
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

// evict closes connections by second chance (the CLOCK algorithm). It spares a connection that has completed
// a request since it was last spared. The first call closes one connection. A call within the next second
// closes up to four times as many, and so on. So one new client costs one idle client its connection, and a
// flood of 5,000 clients in 32 MiB is over within two seconds.
func (l *Listener) evict() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.evictedAt) > time.Second {
		l.batch = 1
	}
	closed := 0
	for looks := l.conns.Len(); looks > 0 && closed < l.batch; looks-- {
		e := l.conns.Front()
		l.conns.MoveToBack(e)
		c := e.Value.(*conn)
		if c.evictable(now) && !c.completed.Swap(false) && c.Abort() == nil {
			closed++
		}
	}
	if closed == 0 {
		return
	}
	l.evictedAt, l.batch = now, 4*closed
	if now.Sub(l.warnedAt) > time.Minute {
		l.warnedAt = now
		// In the background, because a log that nobody reads must not stop the listener.
		go l.log.Warn("all connection slots are taken; closing connections that complete no requests", "slots", cap(l.slots))
	}
}

// evictable reports whether the last request, or the wait for the first one, began long enough ago.
func (c *conn) evictable(now time.Time) bool {
	forClient, since := c.Waiting()
	allowed := stalledAfter
	if forClient {
		allowed = patience
	}
	return !since.IsZero() && now.Sub(since) >= allowed
}

// Drain closes the listener and waits until no connection is open, or no request is in flight and
// firstRequestWait is over, or ctx ends. It returns how many requests are in flight then.
func (l *Listener) Drain(ctx context.Context) int {
	l.Close()
	began := time.Now()
	ticker := time.NewTicker(5 * time.Millisecond) // http.Server.Shutdown polls too
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
		open, inFlight := l.count()
		if ctx.Err() != nil || open == 0 || inFlight == 0 && time.Since(began) >= firstRequestWait {
			return inFlight
		}
	}
}

func (l *Listener) count() (open, inFlight int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := l.conns.Front(); e != nil; e = e.Next() {
		if e.Value.(*conn).InFlight() {
			inFlight++
		}
	}
	return l.conns.Len(), inFlight
}
