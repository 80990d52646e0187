package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"devops-info-service/internal/platform"
)

const (
	serviceName = "devops-info-service"

	// maxRepeated bounds, in bytes, each part of a request that a response or a log line repeats, because both
	// stay in memory until they are read. Encoded, it can be six times as long.
	maxRepeated = 1 << 10
)

// infoResponse answers GET /.
type infoResponse struct {
	Service   serviceInfo `json:"service"`
	System    systemInfo  `json:"system"`
	Runtime   runtimeInfo `json:"runtime"`
	Request   requestInfo `json:"request"`
	Endpoints []endpoint  `json:"endpoints"`
}

type serviceInfo struct {
	Name        string `json:"name"`
	Version     string `json:"version"`
	Description string `json:"description"`
	Framework   string `json:"framework"`
}

type systemInfo struct {
	Hostname        string   `json:"hostname"`
	Platform        string   `json:"platform"`
	PlatformVersion string   `json:"platform_version"` // of the operating system
	Architecture    string   `json:"architecture"`
	CPUCount        int      `json:"cpu_count"` // that the process may run on
	GoVersion       string   `json:"go_version"`
	CPULimit        *float64 `json:"cpu_limit"`          // the container's, in CPUs, such as 0.5; null: none or unknown
	MemoryLimit     *int64   `json:"memory_limit_bytes"` // the container's; null: none or unknown
}

type runtimeInfo struct {
	UptimeSeconds int64  `json:"uptime_seconds"`
	UptimeHuman   string `json:"uptime_human"`
	CurrentTime   string `json:"current_time"` // RFC 3339 with milliseconds
	Timezone      string `json:"timezone"`
}

type requestInfo struct {
	ClientIP  string `json:"client_ip"`
	UserAgent string `json:"user_agent"`
	Method    string `json:"method"`
	Path      string `json:"path"`
}

type endpoint struct {
	Path        string `json:"path"`
	Method      string `json:"method"`
	Description string `json:"description"`
	handler     handler
}

// healthResponse answers GET /health.
type healthResponse struct {
	Status        string `json:"status"`    // healthy or draining
	Timestamp     string `json:"timestamp"` // RFC 3339 with milliseconds, in UTC
	UptimeSeconds int64  `json:"uptime_seconds"`
}

// errorResponse answers every request that fails, unless net/http or internal/server refuses it.
type errorResponse struct {
	Error   string `json:"error"` // the status, in words
	Message string `json:"message"`
	Path    string `json:"path"`
}

// handler makes the response to a GET or HEAD that was received at the time now. The response is encoded as JSON. For HEAD,
// net/http leaves out the body.
type handler func(r *http.Request, now time.Time) (status int, response any)

// service is the http.Handler. It finds the endpoint of the request's path, answers and logs.
type service struct {
	log       *slog.Logger
	version   string
	now       func() time.Time // in the time zone of the response to GET /
	start     time.Time
	system    systemInfo
	endpoints []endpoint
	draining  atomic.Bool // set when the service is told to stop
}

// handle makes h the handler of path. It must be called before the service serves requests.
func (s *service) handle(path, description string, h handler) {
	s.endpoints = append(s.endpoints, endpoint{path, http.MethodGet, description, h})
}

// info answers GET /.
func (s *service) info(r *http.Request, now time.Time) (int, any) {
	timezone := now.Location().String()
	if timezone == "Local" {
		timezone, _ = now.Zone() // the abbreviation, because the system's zone has no name
	}
	uptime := now.Sub(s.start)
	return http.StatusOK, infoResponse{
		Service: serviceInfo{serviceName, s.version, "DevOps course info service", "Go net/http"},
		System:  s.system,
		Runtime: runtimeInfo{int64(uptime / time.Second), formatUptime(uptime), formatTime(now), timezone},
		Request: requestInfo{
			ClientIP:  clientIP(r),
			UserAgent: excerpt(r.UserAgent()),
			Method:    http.MethodGet, // for HEAD too: its Content-Length must be that of GET (RFC 9110, section 8.6)
			Path:      requestPath(r),
		},
		Endpoints: s.endpoints,
	}
}

// health answers GET /health: 200 until the service is told to stop, and 503 from then on.
func (s *service) health(_ *http.Request, now time.Time) (int, any) {
	status, word := http.StatusOK, "healthy"
	if s.draining.Load() {
		status, word = http.StatusServiceUnavailable, "draining"
	}
	return status, healthResponse{word, formatTime(now.UTC()), int64(now.Sub(s.start) / time.Second)}
}

// ServeHTTP answers and logs every request.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	received := s.now()
	body := bodies.Get().(*bytes.Buffer)
	defer bodies.Put(body)
	status := s.respond(body, r, received)

	header := w.Header()
	header["Content-Type"], header["Cache-Control"] = contentType, noStore
	if body.Len() > 2<<10 || r.ContentLength != 0 {
		// Net/http itself sets the length of a body that fits its buffer, in less time; but not if the response is
		// flushed, as internal/server does after a request with a body.
		header.Set("Content-Length", strconv.Itoa(body.Len()))
	}
	if status == http.StatusMethodNotAllowed {
		header.Set("Allow", "GET, HEAD")
	}
	w.WriteHeader(status)
	written, _ := w.Write(body.Bytes()) // into net/http's buffer; it fails if the client has disconnected
	if r.Method == http.MethodHead {
		written = 0 // net/http has counted the body but not sent it
	}
	s.logRequest(r, status, written, received)
}

// Responses use these again, because they would otherwise be most of the handlers' garbage.
var (
	contentType = []string{"application/json"} // without a charset: RFC 8259, section 11
	noStore     = []string{"no-store"}
	bodies      = sync.Pool{New: func() any { return new(bytes.Buffer) }}
)

// respond writes the body of the response and returns its status. A panic becomes a 500, unless it is
// http.ErrAbortHandler, which means that the connection is to end.
func (s *service) respond(body *bytes.Buffer, r *http.Request, now time.Time) (status int) {
	path := requestPath(r)
	fail := func(status int, message string) int {
		encode(body, errorResponse{http.StatusText(status), message, path})
		return status
	}
	defer func() {
		switch v := recover(); v {
		case nil:
		case http.ErrAbortHandler:
			panic(v)
		default:
			s.log.Error("panic", "error", fmt.Sprint(v), "method", excerpt(r.Method), "path", path,
				"stack", string(debug.Stack()))
			status = fail(http.StatusInternalServerError, "The service failed to answer; its log says why.")
		}
	}()
	// Not http.ServeMux, because it redirects paths such as //health, and matches methods only since Go 1.22.
	for _, e := range s.endpoints {
		if e.Path != path {
			continue
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			return fail(http.StatusMethodNotAllowed, excerpt(r.Method)+" is not allowed here; use GET or HEAD.")
		}
		code, response := e.handler(r, now)
		encode(body, response)
		return code
	}
	return fail(http.StatusNotFound, "No such path; GET / lists the endpoints.")
}

// encode makes v the body, one line of JSON. It panics if it cannot, because only a programming error causes that.
func encode(body *bytes.Buffer, v any) {
	body.Reset()
	encoder := json.NewEncoder(body)
	encoder.SetEscapeHTML(false) // JSON does not need it, and a client would get six bytes for one
	if err := encoder.Encode(v); err != nil {
		panic(err)
	}
}

// logRequest logs a 500 at ERROR, health checks at DEBUG, and all else at INFO. Health checks that fail because the service
// stops are at DEBUG, too.
func (s *service) logRequest(r *http.Request, status, written int, received time.Time) {
	level := slog.LevelInfo
	switch {
	case status == http.StatusInternalServerError:
		level = slog.LevelError
	case requestPath(r) == "/health" && (status == http.StatusOK || status == http.StatusServiceUnavailable):
		level = slog.LevelDebug
	}
	if !s.log.Enabled(r.Context(), level) {
		return // before the attributes are made
	}
	s.log.LogAttrs(r.Context(), level, "request",
		slog.String("method", excerpt(r.Method)),
		slog.String("path", requestPath(r)),
		slog.Int("status", status),
		slog.Int("bytes", written), // of the body
		slog.Float64("duration_ms", float64(s.now().Sub(received).Microseconds())/1000),
		slog.String("client_ip", clientIP(r)),
		slog.String("user_agent", excerpt(r.UserAgent())),
	)
}

// newSystemInfo describes the machine whose root directory is root, and the container's limits.
func newSystemInfo(root fs.FS, limits platform.Limits) systemInfo {
	hostname, _ := os.Hostname() // empty if the system does not say
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

// requestPath is the path that the request asks for, or the beginning of one that is too long for any endpoint.
// GET http://host asks for the root (RFC 9112, section 3.2.2).
func requestPath(r *http.Request) string {
	if r.URL.Path == "" && r.Method != http.MethodConnect {
		return "/"
	}
	return excerpt(r.URL.Path)
}

// excerpt returns the first maxRepeated bytes of a part of a request, as valid UTF-8. Each run of other bytes
// becomes one U+FFFD.
func excerpt(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxRepeated)], "\ufffd")
}

// formatTime writes a time as RFC 3339 with milliseconds. Package time is slower with a layout that is not its own.
func formatTime(t time.Time) string {
	text := t.Format(time.RFC3339)
	milliseconds := strconv.Itoa(1000 + t.Nanosecond()/1e6)[1:] // with leading zeros
	return text[:19] + "." + milliseconds + text[19:]
}

// formatUptime names the two largest units of d that are not zero, such as "1 hour, 3 minutes". Less
// than a second is "0 seconds".
func formatUptime(d time.Duration) string {
	var parts []string
	for _, unit := range []struct {
		name   string
		length time.Duration
	}{{"day", 24 * time.Hour}, {"hour", time.Hour}, {"minute", time.Minute}, {"second", time.Second}} {
		switch n := int64(d / unit.length); n {
		case 0:
		case 1:
			parts = append(parts, "1 "+unit.name)
		default:
			parts = append(parts, strconv.FormatInt(n, 10)+" "+unit.name+"s")
		}
		d %= unit.length
	}
	if len(parts) == 0 {
		return "0 seconds"
	}
	return strings.Join(parts[:min(2, len(parts))], ", ")
}
