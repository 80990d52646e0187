// Package lifecycle serves until the process is told to stop, and then stops in steps, so that no request
// that finishes in time is lost. It logs each step. It does not install signal handlers.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"devops-info-service/internal/connlimit"
)

// ErrRequestsCut means that requests were still in flight when the time to stop was over.
var ErrRequestsCut = errors.New("requests were cut")

// logTimeout bounds the wait for each of the three log lines of a stop, because a log that nobody reads
// must not prevent the stop. With the default timeouts, it still ends before docker stop sends SIGKILL.
const logTimeout = 500 * time.Millisecond

// Service is what Run serves.
type Service struct {
	Server   *http.Server
	Listener *connlimit.Listener
	Log      *slog.Logger

	StartDraining   func()        // makes health checks fail
	ShutdownDelay   time.Duration // between StartDraining and closing the listener
	ShutdownTimeout time.Duration // between closing the listener and cutting the requests in flight
}

// Run serves until a signal arrives or ctx ends. Then health checks fail, and everything is still
// served for ShutdownDelay. After that the listener closes, and the requests in flight have
// ShutdownTimeout to finish. A second signal ends the delay and the timeout at once.
func (s Service) Run(ctx context.Context, signals <-chan os.Signal) error {
	failed := make(chan error, 1)
	go func() { failed <- s.Listener.Serve(s.Server) }()

	var reason string
	select {
	case err := <-failed: // for good, because net/http retries temporary errors itself
		s.log(slog.LevelError, "serving failed", "error", err.Error())
		return err
	case sig := <-signals:
		reason = sig.String()
	case <-ctx.Done():
		reason = "end of context"
	}

	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		select {
		case sig := <-signals:
			cancel(fmt.Errorf("a second signal: %v", sig))
		case <-ctx.Done():
		}
	}()
	s.StartDraining()
	s.log(slog.LevelInfo, "draining", "reason", reason, "delay", s.ShutdownDelay.String())
	select {
	case <-time.After(s.ShutdownDelay):
	case <-ctx.Done():
	}

	s.log(slog.LevelInfo, "stopping", "timeout", s.ShutdownTimeout.String())
	timed, cancelTimeout := context.WithTimeoutCause(ctx, s.ShutdownTimeout, errors.New("the timeout"))
	defer cancelTimeout()
	// Not Server.Shutdown, because it drops a request whose header is still arriving.
	inFlight := s.Listener.Drain(timed)
	reason = "all requests answered"
	if cause := context.Cause(timed); cause != nil {
		reason = cause.Error()
	}
	if inFlight > 0 {
		s.log(slog.LevelError, "stopped, with requests cut", "reason", reason, "requests_cut", inFlight)
		return ErrRequestsCut
	}
	s.log(slog.LevelInfo, "stopped", "reason", reason)
	return nil
}

func (s Service) log(level slog.Level, message string, args ...any) {
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		s.Log.Log(context.Background(), level, message, args...)
	}()
	select {
	case <-logged:
	case <-time.After(logTimeout):
	}
}
