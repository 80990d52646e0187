package main

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"devops-info-service/internal/jsonline"
	"devops-info-service/internal/platform"
)

const (
	serviceName        = "devops-info-service"
	serviceDescription = "DevOps course info service"
	serviceFramework   = "Go net/http"

	// maxEchoed bounds, in bytes, each part of a request that a response repeats, because the service
	// must keep what the kernel's buffer does not take until the client reads.
	maxEchoed = 4 << 10

	// maxLogged bounds, in bytes, each part of a request that a log line repeats.
	maxLogged = 1 << 10

	// maxBuffered is the size in bytes of the longest body that net/http keeps until the handler returns. It
	// sets the Content-Length of such a body itself, which saves 0.02 of the throughput of bare net/http.
	maxBuffered = 2048

	timeLayout = "2006-01-02T15:04:05.000Z07:00" // RFC 3339 with milliseconds
)

// The members of the response to GET / that stay the same while the service runs.
type (
	serviceInfo struct {
		Name        string `json:"name"`
		Version     string `json:"version"`
		Description string `json:"description"`
		Framework   string `json:"framework"`
	}
	systemInfo struct {
		Hostname        string   `json:"hostname"`
		Platform        string   `json:"platform"`
		PlatformVersion string   `json:"platform_version"` // of the operating system
		Architecture    string   `json:"architecture"`
		CPUCount        int      `json:"cpu_count"` // the machine's
		GoVersion       string   `json:"go_version"`
		CPULimit        *float64 `json:"cpu_limit"`          // the container's, in CPUs, such as 0.5; null: none or unknown
		MemoryLimit     *int64   `json:"memory_limit_bytes"` // the container's; null: none or unknown
	}
	endpointInfo struct {
		Path        string `json:"path"`
		Method      string `json:"method"`
		Description string `json:"description"`
	}
)

// handler answers GET and, without the body, HEAD, to a request received at the time now. It writes the
// members of the response's object and returns the status.
type handler func(r *http.Request, now time.Time, response *jsonline.Line) (status int)

// service is the http.Handler. It finds the handler of the request's path, answers and logs.
type service struct {
	log       *slog.Logger
	logOutput io.Writer // where log writes
	now       func() time.Time
	start     time.Time
	location  *time.Location
	handlers  map[string]handler // by path
	endpoints []endpointInfo
	draining  atomic.Bool // set when the service is told to stop

	logging  chan struct{} // has one element for each request that is writing its log line
	unlogged atomic.Int64  // lines that were dropped since the last one was written

	// Encoded once, because if they were encoded for each response, GET / would lose 0.04 of the throughput of
	// bare net/http.
	serviceJSON, systemJSON, endpointsJSON json.RawMessage
}

// newService returns a service without endpoints that starts now. log must write to logOutput, which
// must take writes from several goroutines at once, as a file does. At most half of maxConnections requests
// wait for logOutput at once. GET / shows the time in location.
func newService(log *slog.Logger, logOutput io.Writer, maxConnections int, now func() time.Time, location *time.Location, system systemInfo) *service {
	return &service{
		log: log, logOutput: logOutput, logging: make(chan struct{}, (1+maxConnections)/2),
		now: now, start: now(), location: location,
		handlers:    map[string]handler{},
		serviceJSON: encode(serviceInfo{serviceName, version, serviceDescription, serviceFramework}),
		systemJSON:  encode(system),
	}
}

// encode returns v as JSON. It panics if it cannot, because only a programming error causes that.
func encode(v any) json.RawMessage {
	encoded, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return encoded
}

// handle makes h the handler of path. It must be called before the service serves requests.
func (s *service) handle(path, description string, h handler) {
	s.handlers[path] = h
	s.endpoints = append(s.endpoints, endpointInfo{path, http.MethodGet, description})
	s.endpointsJSON = encode(s.endpoints)
}

// info answers GET /.
func (s *service) info(r *http.Request, now time.Time, response *jsonline.Line) int {
	local := now.In(s.location)
	timezone := s.location.String()
	if s.location == time.Local {
		timezone, _ = local.Zone() // the abbreviation, because the system's zone has no name
	}
	uptime := now.Sub(s.start)

	response.JSON("service", s.serviceJSON)
	response.JSON("system", s.systemJSON)

	response.BeginObject("runtime")
	response.Int("uptime_seconds", int64(uptime/time.Second))
	response.String("uptime_human", formatUptime(uptime))
	response.Time("current_time", local, timeLayout)
	response.String("timezone", timezone)
	response.EndObject()

	response.BeginObject("request")
	response.String("client_ip", clientIP(r))
	response.String("user_agent", truncate(r.UserAgent(), maxEchoed))
	response.String("method", http.MethodGet) // for HEAD too: its Content-Length must be that of GET (RFC 9110, section 8.6)
	response.String("path", r.URL.Path)
	response.EndObject()

	response.JSON("endpoints", s.endpointsJSON)
	return http.StatusOK
}

// health answers GET /health: 200 until the service is told to stop, and 503 from then on.
func (s *service) health(_ *http.Request, now time.Time, response *jsonline.Line) int {
	code, status := http.StatusOK, "healthy"
	if s.draining.Load() {
		code, status = http.StatusServiceUnavailable, "draining"
	}
	response.String("status", status)
	response.Time("timestamp", now.UTC(), timeLayout)
	response.Int("uptime_seconds", int64(now.Sub(s.start)/time.Second))
	return code
}

// startDraining makes health checks fail and each response close its connection.
func (s *service) startDraining() { s.draining.Store(true) }

// ServeHTTP answers and logs every request.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	received := s.now()
	if r.URL.Path == "" && r.Method != http.MethodConnect {
		r.URL.Path = "/" // GET http://host asks for the root: RFC 9112, section 3.2.2
	}
	line := jsonline.New() // first of the response, then of the log
	status := s.respond(r, received, line)
	body := line.Bytes()

	header := w.Header()
	header.Set("Content-Type", "application/json") // without a charset: RFC 8259, section 11
	header.Set("Cache-Control", "no-store")
	if status == http.StatusMethodNotAllowed {
		header.Set("Allow", "GET, HEAD")
	}
	if len(body) > maxBuffered {
		header.Set("Content-Length", strconv.Itoa(len(body)))
	}
	// A service that drains closes its connections, so that clients reconnect elsewhere. A request with a
	// body closes its connection too, because net/http would otherwise read the body before it sent the
	// response.
	if s.draining.Load() || r.ContentLength != 0 {
		header.Set("Connection", "close")
	}
	w.WriteHeader(status)
	written, _ := w.Write(body) // fails only if the client has disconnected
	if r.Method == http.MethodHead {
		written = 0 // net/http has counted the body but not sent it
	}
	s.logRequest(r, line, status, written, received)
}

// respond writes the body of the response and returns its status. A panic becomes a 500.
func (s *service) respond(r *http.Request, now time.Time, response *jsonline.Line) (status int) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("panic", "error", fmt.Sprint(v), "method", truncate(r.Method, maxLogged),
				"path", truncate(r.URL.Path, maxLogged), "stack", string(debug.Stack()))
			response.Begin()
			status = writeError(r, response, http.StatusInternalServerError, "The service failed to answer; its log says why.")
		}
		response.End()
	}()
	response.Begin()
	// Not http.ServeMux, because it redirects paths such as //health, and matches methods only since Go 1.22.
	h, found := s.handlers[r.URL.Path]
	switch {
	case !found:
		return writeError(r, response, http.StatusNotFound, "No such path; GET / lists the endpoints.")
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return writeError(r, response, http.StatusMethodNotAllowed, truncate(r.Method, maxEchoed)+" is not allowed here; use GET or HEAD.")
	}
	return h(r, now, response)
}

// writeError writes an error's members and returns the status.
func writeError(r *http.Request, response *jsonline.Line, status int, message string) int {
	response.String("error", http.StatusText(status))
	response.String("message", message)
	response.String("path", truncate(r.URL.Path, maxEchoed))
	return status
}

// logRequest logs a successful health check at DEBUG, a 5xx at ERROR and every other request at INFO, in
// the form of slog's JSON.
func (s *service) logRequest(r *http.Request, line *jsonline.Line, status, bytes int, received time.Time) {
	level := slog.LevelInfo
	switch {
	case status >= 500:
		level = slog.LevelError
	case status == http.StatusOK && r.URL.Path == "/health":
		level = slog.LevelDebug
	}
	if !s.log.Enabled(r.Context(), level) {
		return
	}
	now := s.now()
	line.Begin()
	line.Time("time", now, time.RFC3339Nano)
	line.String("level", level.String())
	line.String("msg", "request")
	line.String("method", truncate(r.Method, maxLogged))
	line.String("path", truncate(r.URL.Path, maxLogged))
	line.Int("status", int64(status))
	line.Int("bytes", int64(bytes)) // of the body
	line.Float("duration_ms", float64(now.Sub(received).Microseconds())/1000)
	line.String("client_ip", clientIP(r))
	line.String("user_agent", truncate(r.UserAgent(), maxLogged))
	line.End()

	select {
	case s.logging <- struct{}{}:
		s.logOutput.Write(line.Bytes())
		if n := s.unlogged.Swap(0); n > 0 {
			s.log.Warn("requests were not logged, because nobody read the log", "requests", n)
		}
		<-s.logging
	default: // because requests that wait for the log could take every connection and hide /health
		s.unlogged.Add(1)
	}
}

// newSystemInfo describes the machine whose root directory is root, and the container's limits.
func newSystemInfo(root fs.FS, limits platform.Limits) systemInfo {
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "unknown"
	}
	return systemInfo{
		hostname, runtime.GOOS, platform.Version(root), runtime.GOARCH,
		runtime.NumCPU(), runtime.Version(), limits.CPUs, limits.Memory,
	}
}

// clientIP is the address of the connection's other end, without port, brackets or interface. An
// IPv4-mapped IPv6 address is written as IPv4. Headers such as X-Forwarded-For are not read, because
// any client can set them.
func clientIP(r *http.Request) string {
	client, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return client.Addr().Unmap().WithZone("").String()
}

// truncate returns at most the first limit bytes of s.
func truncate(s string, limit int) string { return s[:min(len(s), limit)] }

// formatUptime names the two largest units of d that are not zero, such as "1 hour, 3 minutes". Less
// than a second is "0 seconds".
func formatUptime(d time.Duration) string {
	seconds := int64(d / time.Second)
	units := []struct {
		name  string
		count int64
	}{
		{"day", seconds / 86400},
		{"hour", seconds / 3600 % 24},
		{"minute", seconds / 60 % 60},
		{"second", seconds % 60},
	}
	var parts []string
	for _, unit := range units {
		if unit.count == 0 || len(parts) == 2 {
			continue
		}
		part := strconv.FormatInt(unit.count, 10) + " " + unit.name
		if unit.count != 1 {
			part += "s"
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		return "0 seconds"
	}
	return strings.Join(parts, ", ")
}
