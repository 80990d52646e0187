// Package server serves HTTP. It bounds what one connection can consume and how many there are, because each
// costs memory, and it stops in steps, so that no accepted request that finishes in time is lost.
//
// A connection gets a slot when it is accepted (listener.go). Its requests are followed as their bytes
// arrive (conn.go). The slot is free again when both ends are closed, or after a reset.
package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"
)

// Limits on what one connection can consume.
const (
	readTimeout    = 5 * time.Second   // for a request, which clients send at once; no endpoint reads a body
	writeTimeout   = 10 * time.Second  // for a response, which has about 1 KB
	idleTimeout    = 620 * time.Second // between requests; longer than load balancers keep theirs, usually 60 or 600 s
	maxHeaderBytes = 16 << 10          // request line and header; twice what common proxies forward
	maxHeaderLines = 100               // for short lines, net/http needs many times their size; Apache and Tomcat allow 100 too
)

// How long a stop goes on when no request is in flight any more.
const (
	firstRequestWait = 250 * time.Millisecond // because clients that have just connected are about to send one
	stopLingerTime   = time.Second            // in place of it, while clients may be reading their last response
)

// Server is what Run serves, and how it stops.
type Server struct {
	Handler        http.Handler
	Log            *slog.Logger
	MaxConnections int // at least 1

	StartDraining   func()        // makes health checks fail
	ShutdownDelay   time.Duration // between StartDraining and closing the listener
	ShutdownTimeout time.Duration // between closing the listener and cutting the requests in flight
}

// Run serves until a signal arrives or ctx ends. Then health checks fail, and everything is still served
// for ShutdownDelay, on connections that each response closes. After that the listener closes, and the requests in
// flight have ShutdownTimeout to finish. A second signal ends the delay and the timeout at once. The log says all
// that, and why there is an error: serving failed, or requests were still in flight at the end.
func (s Server) Run(ctx context.Context, tcp *net.TCPListener, signals <-chan os.Signal) error {
	l := newListener(tcp, s.MaxConnections, s.Log)
	served := make(chan error, 1)
	go func() { served <- s.httpServer(l).Serve(l) }()

	var reason string
	select {
	case err := <-served: // for good, because net/http retries temporary errors itself
		s.Log.Error("serving failed", "error", err.Error())
		return err
	case sig := <-signals:
		reason = sig.String()
	case <-ctx.Done():
		reason = "end of context"
	}
	s.StartDraining()
	l.draining.Store(true)
	s.Log.Info("draining", "reason", reason, "delay", s.ShutdownDelay.String())

	ended := "" // why the stop did
	select {
	case <-time.After(s.ShutdownDelay):
	case sig := <-signals:
		ended = "a second signal: " + sig.String()
	}
	s.Log.Info("stopping", "timeout", s.ShutdownTimeout.String())
	l.Close()
	if ended == "" {
		ended = s.finish(l, signals)
	}
	if _, inFlight, _ := l.census(); inFlight > 0 { // these are cut when the process exits
		s.Log.Error("stopped, with requests cut", "reason", ended, "requests_cut", inFlight)
		return errors.New("requests were cut")
	}
	s.Log.Info("stopped", "reason", ended)
	return nil
}

// finish waits until no request is in flight, and the clients have had time to send a first one and to read the last
// response; or until a second signal or the timeout. It returns which. It is not http.Server.Shutdown, because that
// drops a request whose header is still arriving.
func (s Server) finish(l *listener, signals <-chan os.Signal) (reason string) {
	timeout := time.After(s.ShutdownTimeout)
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	busyAt := time.Now() // when a request was last in flight
	for {
		select {
		case sig := <-signals:
			return "a second signal: " + sig.String()
		case <-timeout:
			return "the timeout"
		case <-ticker.C:
			open, inFlight, lingering := l.census()
			patience := firstRequestWait
			if lingering > 0 {
				patience = stopLingerTime
			}
			if inFlight > 0 {
				busyAt = time.Now()
			} else if open == 0 || time.Since(busyAt) >= patience {
				return "all requests answered"
			}
		}
	}
}

func (s Server) httpServer(l *listener) *http.Server {
	return &http.Server{
		Handler:                      l.wrap(s.Handler),
		ConnState:                    stateChanged,
		DisableGeneralOptionsHandler: true, // OPTIONS * is answered like every other unknown path
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               2 * maxHeaderBytes, // so that conn.Read, which counts too, is first
		ErrorLog:                     slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn),
	}
}
