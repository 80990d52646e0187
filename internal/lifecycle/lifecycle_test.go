package lifecycle

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"devops-info-service/internal/connlimit"
	"devops-info-service/test/harness"
)

// testService is a Service that runs.
type testService struct {
	address  string
	log      *harness.Buffer
	signals  chan os.Signal
	stop     context.CancelFunc // ends the context
	draining atomic.Bool
	result   chan error
}

// start runs a service with these durations. It logs to log, or to the service's own buffer.
func start(t *testing.T, delay, timeout time.Duration, log io.Writer) *testService {
	t.Helper()
	listener := harness.Listen(t)
	s := &testService{
		address: listener.Addr().String(),
		log:     &harness.Buffer{},
		signals: make(chan os.Signal, 2),
		result:  make(chan error, 1),
	}
	if log == nil {
		log = s.log
	}
	logger := slog.New(slog.NewJSONHandler(log, nil))
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	service := Service{
		Server: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "done")
		})},
		Listener:        connlimit.New(listener, 100, logger),
		Log:             logger,
		StartDraining:   func() { s.draining.Store(true) },
		ShutdownDelay:   delay,
		ShutdownTimeout: timeout,
	}
	go func() { s.result <- service.Run(ctx, s.signals) }()
	t.Cleanup(func() { // for a test that has failed before the end
		cancel()
		select {
		case s.signals <- os.Interrupt:
		default:
		}
	})
	return s
}

// wait returns what Run returned.
func (s *testService) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-s.result:
		return err
	case <-time.After(15 * time.Second):
		t.Fatalf("Run has not returned; log:\n%s", s.log)
		return nil
	}
}

// steps returns the messages of the log.
func (s *testService) steps() string {
	var steps []string
	for _, message := range []string{"draining", "stopping", "stopped", "stopped, with requests cut", "serving failed"} {
		for range harness.LogLines(s.log.String(), message) {
			steps = append(steps, message)
		}
	}
	return strings.Join(steps, ", ")
}

func TestStopIsLoggedInSteps(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		stop   func(*testService)
		reason string
	}{
		"SIGTERM":        {func(s *testService) { s.signals <- syscall.SIGTERM }, "terminated"},
		"SIGINT":         {func(s *testService) { s.signals <- os.Interrupt }, "interrupt"},
		"end of context": {func(s *testService) { s.stop() }, "end of context"},
	} {
		test := test
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, time.Millisecond, 5*time.Second, nil)
			if response, _ := harness.Get(t, s.address, "/"); response.StatusCode != 200 {
				t.Errorf("got %d, want 200", response.StatusCode)
			}
			if s.draining.Load() {
				t.Error("drains before it is told to stop")
			}
			test.stop(s)
			if err := s.wait(t); err != nil {
				t.Errorf("got the error %v", err)
			}
			if !s.draining.Load() {
				t.Error("StartDraining was not called")
			}
			if got, want := s.steps(), "draining, stopping, stopped"; got != want {
				t.Errorf("got the steps %s, want %s", got, want)
			}
			for message, want := range map[string]map[string]any{
				"draining": {"reason": test.reason, "delay": "1ms", "level": "INFO"},
				"stopping": {"timeout": "5s", "level": "INFO"},
				"stopped":  {"reason": "all requests answered", "level": "INFO"},
			} {
				line := harness.WaitForLog(t, s.log, message, 1)[0]
				for key, value := range want {
					if line[key] != value {
						t.Errorf("%s: got %s %v, want %v", message, key, line[key], value)
					}
				}
			}
			if !harness.Refused(s.address) {
				t.Error("the listener is open after the stop")
			}
		})
	}
}

func TestEverythingIsServedDuringTheDelay(t *testing.T) {
	t.Parallel()
	s := start(t, time.Hour, time.Hour, nil)
	s.signals <- syscall.SIGTERM
	harness.WaitForLog(t, s.log, "draining", 1)
	conn := harness.Dial(t, s.address)
	harness.Write(t, conn, "GET / HTTP/1.0\r\n\r\n")
	// To its end, because until the service has closed the connection, the request may be in flight.
	response, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(response), "HTTP/1.0 200 ") || !s.draining.Load() {
		t.Errorf("got %q (%v), draining %v, want 200 and true", response, err, s.draining.Load())
	}
	s.signals <- os.Interrupt
	if err := s.wait(t); err != nil {
		t.Errorf("got the error %v", err)
	}
}

// dialHalf returns a connection that has sent half a request, which the service has read.
func dialHalf(t *testing.T, s *testService) *bufio.ReadWriter {
	t.Helper()
	conn := harness.Dial(t, s.address)
	reader := bufio.NewReader(conn)
	// In one packet, so that the half was read when the response to the whole one arrives.
	harness.Write(t, conn, harness.SmallRequest+harness.HalfRequest)
	harness.Receive(t, reader, "GET")
	return bufio.NewReadWriter(reader, bufio.NewWriterSize(conn, 1))
}

func TestRequestInFlightIsAnswered(t *testing.T) {
	t.Parallel()
	s := start(t, 0, 15*time.Second, nil)
	conn := dialHalf(t, s)
	s.signals <- syscall.SIGTERM
	harness.WaitFor(t, "the listener to close", func() bool { return harness.Refused(s.address) })
	conn.WriteString(harness.RestOfRequest)
	conn.Flush()
	if response, body := harness.Receive(t, conn.Reader, "GET"); response.StatusCode != 200 || body != "done" {
		t.Errorf("got %d %q, want 200 done", response.StatusCode, body)
	}
	if err := s.wait(t); err != nil {
		t.Errorf("got the error %v", err)
	}
}

func TestTimeoutCutsRequests(t *testing.T) {
	t.Parallel()
	const delay, timeout = 50 * time.Millisecond, 60 * time.Millisecond
	s := start(t, delay, timeout, nil)
	dialHalf(t, s)
	s.signals <- syscall.SIGTERM
	if err := s.wait(t); !errors.Is(err, ErrRequestsCut) {
		t.Errorf("got the error %v, want %v", err, ErrRequestsCut)
	}
	line := harness.WaitForLog(t, s.log, "stopped, with requests cut", 1)[0]
	if line["level"] != "ERROR" || line["requests_cut"] != 1.0 || line["reason"] != "the timeout" {
		t.Errorf("logged %v", line)
	}
	// The timeout starts when the delay has passed.
	var at []time.Time
	for _, step := range []string{"draining", "stopping", "stopped, with requests cut"} {
		logged, err := time.Parse(time.RFC3339Nano, harness.WaitForLog(t, s.log, step, 1)[0]["time"].(string))
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, logged)
	}
	if got := at[1].Sub(at[0]); got < delay {
		t.Errorf("the delay was %v, want %v", got, delay)
	}
	if got := at[2].Sub(at[1]); got < timeout {
		t.Errorf("the timeout was %v, want %v", got, timeout)
	}
}

func TestSecondSignalEndsTheStopAtOnce(t *testing.T) {
	t.Parallel()
	t.Run("during the delay", func(t *testing.T) {
		t.Parallel()
		s := start(t, time.Hour, time.Hour, nil)
		s.signals <- syscall.SIGTERM
		harness.WaitForLog(t, s.log, "draining", 1)
		s.signals <- os.Interrupt
		if err := s.wait(t); err != nil {
			t.Errorf("got the error %v, want none, because nothing was cut", err)
		}
	})
	t.Run("with a request in flight", func(t *testing.T) {
		t.Parallel()
		s := start(t, 0, time.Hour, nil)
		dialHalf(t, s)
		s.signals <- syscall.SIGTERM
		harness.WaitForLog(t, s.log, "stopping", 1)
		s.signals <- os.Interrupt
		if err := s.wait(t); !errors.Is(err, ErrRequestsCut) {
			t.Errorf("got the error %v, want %v", err, ErrRequestsCut)
		}
		line := harness.WaitForLog(t, s.log, "stopped, with requests cut", 1)[0]
		if line["level"] != "ERROR" || line["requests_cut"] != 1.0 || line["reason"] != "a second signal: interrupt" {
			t.Errorf("logged %v", line)
		}
	})
}

func TestLogThatNobodyReadsDoesNotPreventTheStop(t *testing.T) {
	t.Parallel()
	reader, writer := io.Pipe()
	defer reader.Close()
	s := start(t, 0, 5*time.Second, writer)
	s.signals <- syscall.SIGTERM
	if err := s.wait(t); err != nil {
		t.Errorf("got the error %v", err)
	}
}

func TestListenerThatFailsEndsRun(t *testing.T) {
	t.Parallel()
	listener := harness.Listen(t)
	listener.Close()
	log := &harness.Buffer{}
	logger := slog.New(slog.NewJSONHandler(log, nil))
	err := Service{Server: &http.Server{}, Listener: connlimit.New(listener, 1, logger), Log: logger}.Run(context.Background(), nil)
	if err == nil {
		t.Error("got no error")
	}
	if line := harness.WaitForLog(t, log, "serving failed", 1)[0]; line["level"] != "ERROR" || line["error"] != err.Error() {
		t.Errorf("logged %v, want the error %v", line, err)
	}
}
