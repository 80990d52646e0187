// Package server serves HTTP. It bounds what one connection can consume and how many there are, because each
// costs memory, and it stops in steps, so that requests in flight can finish.
//
// A connection gets a slot when it is accepted (listener.go), and tracks what it waits for (conn.go). The slot is
// free again when both ends are closed, or after a reset.
package server

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

// stopWait is how long a stop waits for open connections on which nothing happens: their clients may be reading, or about
// to send a first request.
const stopWait = time.Second

// Server is what Run serves, and how it stops.
type Server struct {
	Handler        http.Handler // sets Content-Length, if the request has a body
	Log            *slog.Logger
	MaxConnections int // at least 1

	Draining        *atomic.Bool  // set when the stop begins, so that health checks fail
	ShutdownDelay   time.Duration // from then until the listener closes
	ShutdownTimeout time.Duration // between closing the listener and cutting the requests in flight
}

// Run serves until a signal arrives. Then health checks fail, and everything is still served for ShutdownDelay, on
// connections that each response closes. After that the listener closes, and the requests in flight have
// ShutdownTimeout to finish. A second signal ends the delay and the timeout at once. The log says all that, and why
// there is an error: serving failed, or requests were still in flight at the end.
func (s Server) Run(tcp net.Listener, signals <-chan os.Signal) error {
	l := newListener(tcp, s.MaxConnections, s.Log)
	l.sweep()
	served := make(chan error, 1)
	go func() { served <- s.httpServer(l).Serve(l) }()

	select {
	case err := <-served: // a permanent error, because net/http retries after others
		s.Log.Error("serving failed", "error", err.Error())
		return err
	case sig := <-signals:
		s.Draining.Store(true)
		s.Log.Info("draining", "reason", sig.String(), "delay", s.ShutdownDelay.String())
	}

	reason := s.stop(l, signals)
	if _, inFlight, _ := l.census(); inFlight > 0 { // these are cut when the process exits
		s.Log.Error("stopped, with requests cut", "reason", reason, "requests_cut", inFlight)
		return errors.New("requests were cut")
	}
	s.Log.Info("stopped", "reason", reason)
	return nil
}

// stop closes the listener after ShutdownDelay. Then it waits until no request is in flight, and either no connection is
// open or nothing has happened for stopWait; but at most for ShutdownTimeout. A second signal ends it at once. It returns
// why it ended. It is not http.Server.Shutdown, because that drops a request whose header is still arriving.
func (s Server) stop(l *listener, signals <-chan os.Signal) (reason string) {
	delay := time.After(s.ShutdownDelay)
	var closed time.Time
	var timeout, ticks <-chan time.Time // once the listener is closed
	for {
		select {
		case sig := <-signals:
			return "a second signal: " + sig.String()
		case closed = <-delay:
			s.Log.Info("stopping", "timeout", s.ShutdownTimeout.String())
			l.Close()
			timeout, ticks = time.After(s.ShutdownTimeout), time.NewTicker(5*time.Millisecond).C
		case <-timeout:
			return "the timeout"
		case <-ticks:
			open, inFlight, changed := l.census()
			quiet := time.Since(closed) >= stopWait && time.Since(changed) >= stopWait
			if inFlight == 0 && (open == 0 || quiet) {
				return "no request left"
			}
		}
	}
}

func (s Server) httpServer(l *listener) *http.Server {
	return &http.Server{
		Handler: l.wrap(s.Handler, s.Draining),
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateIdle { // the response is sent
				c.(*conn).enter(idle)
			}
		},
		DisableGeneralOptionsHandler: true, // OPTIONS * is answered like every other unknown path
		ErrorLog:                     slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn),
	}
}
