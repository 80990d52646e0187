package server

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// connectionCost is what a connection takes at its worst: in the process, for a header of 16 KiB, and in the kernel,
	// for requests that have not been read and a response that the client does not take. Version 2 of control groups
	// charges both to the container. So MaxConnections × connectionCost + processCost fits, unless
	// minConnections applies.
	connectionCost = 120 << 10 // bytes
	processCost    = 8 << 20   // bytes, with no connection open
	minConnections = 32        // however little memory there is
	maxConnections = 16384     // however much
	reservedFiles  = 16        // file descriptors that are not for connections
	socketBuffer   = 6 << 10   // bytes of each of a connection's two kernel buffers; Linux doubles it

	// lookPeriod is the time between two looks, and how long a connection must have waited for its client so that a look
	// may evict it. If it is shorter, busy clients that behave lose requests; if longer, floods last longer.
	lookPeriod = 30 * time.Millisecond

	// firstWait is how long the first one must have waited. It is longer, because if a thousand clients that behave connect at
	// once, a slow machine needs nearly as long until all have sent their requests.
	firstWait = 250 * time.Millisecond

	sweepPeriod = time.Second // how late a time limit may come

	// If as many clients have closed their connections since the last look, a look evicts none. If it were greater, busy
	// clients that behave would lose requests; if smaller, a few that leave in turn would keep the others waiting.
	enoughLeavers = 16
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

// Listen listens for TCP like net.Listen, with small kernel buffers. They are set before the first client connects, because
// clients send before Accept returns.
func Listen(network, address string) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, socket syscall.RawConn) error {
		return socket.Control(func(fd uintptr) { setBuffers(syscall.SetsockoptInt, fd) })
	}}
	return config.Listen(context.Background(), network, address)
}

// setBuffers has a type parameter because a socket is an int for syscall.SetsockoptInt, but a Handle on Windows.
func setBuffers[Socket ~int | ~uintptr](setOption func(s Socket, level, option, value int) error, fd uintptr) {
	setOption(Socket(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, socketBuffer)
	setOption(Socket(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, socketBuffer)
}

// listener is a TCP listener with a bounded number of slots, one for each open connection. When all slots
// are taken, a new connection waits for one. While it waits, each response closes its connection, and
// connections that wait for their clients are evicted.
type listener struct {
	net.Listener
	log     *slog.Logger
	slots   chan struct{}    // has one element for each open connection
	waiting atomic.Bool      // a new connection waits for a slot
	looks   <-chan time.Time // receives when the next look may be; used only by Accept
	leavers atomic.Int32     // clients that have closed their connections since the last look

	mu        sync.Mutex
	conns     map[*conn]bool // the open connections
	batch     int            // how many the next look may evict
	evictedAt time.Time
}

func newListener(tcp net.Listener, slots int, log *slog.Logger) *listener {
	return &listener{
		Listener: tcp, log: log, slots: make(chan struct{}, slots), looks: time.After(0), conns: map[*conn]bool{},
	}
}

// sweep ends the connections that have reached the time limit of their phase, every sweepPeriod from now on.
func (l *listener) sweep() {
	now := time.Now()
	l.mu.Lock()
	for c := range l.conns {
		if p, waited := c.check(now); waited >= timeLimits[p] {
			c.SetReadDeadline(now) // so that Read fails, and net/http closes the connection
			if p == sending {
				c.SetWriteDeadline(now)
			}
		}
	}
	l.mu.Unlock()
	time.AfterFunc(sweepPeriod, l.sweep)
}

// Accept waits for the next connection and for a slot.
func (l *listener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.acquireSlot()
	c := &conn{Conn: accepted, tcp: accepted.(*net.TCPConn), listener: l}
	c.enter(idle)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c] = true
	return c, nil
}

// acquireSlot waits until there is a slot, and looks every lookPeriod. The period goes on from one wait to the next, because
// otherwise a few clients that leave one by one could keep each wait too short for a look, and the queue long.
func (l *listener) acquireSlot() {
	select {
	case l.slots <- struct{}{}:
		return
	default:
	}
	l.waiting.Store(true)
	defer l.waiting.Store(false)
	for {
		select {
		case l.slots <- struct{}{}:
			return
		case <-l.looks:
			l.look()
			l.looks = time.After(lookPeriod)
		}
	}
}

// look evicts connections that wait for their clients, unless enough clients have closed theirs. At first, it evicts one
// that has waited for firstWait. Each further look evicts up to four times as many as the last, which must have waited for
// lookPeriod. After a second without evictions, it begins with one again. So one new client costs one idle client its
// connection, and a flood of thousands is soon over.
func (l *listener) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leavers.Swap(0) >= enoughLeavers {
		return
	}
	now, wait := time.Now(), lookPeriod
	if now.Sub(l.evictedAt) > time.Second {
		l.batch, wait = 1, firstWait
	}
	evicted := 0
	for p := idle; p <= sending; p++ {
		for c := range l.conns {
			if in, waited := c.check(now); in == p && waited >= wait && evicted < l.batch {
				l.reset(c)
				evicted++
			}
		}
	}
	if evicted > 0 {
		if l.batch == 1 {
			l.log.Warn("all connection slots are taken; closing connections that complete no requests", "slots", cap(l.slots))
		}
		l.evictedAt, l.batch = now, 4*evicted
	}
}

// reset closes a connection, drops what the client does not have, and gives the slot back. A second call does nothing.
// The caller holds mu.
func (l *listener) reset(c *conn) {
	c.tcp.SetLinger(0)
	c.tcp.Close()
	if l.conns[c] {
		delete(l.conns, c)
		<-l.slots
	}
}

// wrap closes connections when they must not be kept, and never waits for a request's body.
func (l *listener) wrap(handler http.Handler, draining *atomic.Bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hasBody := r.ContentLength != 0
		// A server that drains closes its connections so that clients reconnect elsewhere. Before a response to
		// a request with a body, net/http would read the body, unless the response closes the connection.
		if draining.Load() || l.waiting.Load() || hasBody {
			w.Header().Set("Connection", "close")
		}
		if !hasBody {
			handler.ServeHTTP(w, r)
			return
		}
		control := http.NewResponseController(w)
		control.SetReadDeadline(time.Now().Add(timeLimits[header])) // for a handler that reads the body; none does today
		handler.ServeHTTP(w, r)
		// After the handler, net/http would read what is left of the body, or sleep for half a second, and the slot
		// could not be given to anybody else. So the response is flushed, the body cannot be read any more, and the
		// panic, which net/http provides for this and does not log, closes the connection.
		control.Flush()
		control.SetReadDeadline(time.Now())
		panic(http.ErrAbortHandler)
	})
}

// census returns how many connections have slots, how many have a request in flight, and when a check last found one in a
// new phase.
func (l *listener) census() (open, inFlight int, changed time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for c := range l.conns {
		if p, _ := c.check(now); p != idle && p != closing {
			inFlight++
		}
		if c.since.After(changed) {
			changed = c.since
		}
	}
	if l.waiting.Load() { // the connection that waits may have sent a request
		inFlight++
	}
	return len(l.slots), inFlight, changed
}
