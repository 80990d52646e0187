package main

import (
	"bytes"
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

	"devops-info-service/internal/platform"
)

const (
	serviceName        = "devops-info-service"
	serviceDescription = "DevOps course info service"
	serviceFramework   = "Go net/http"

	// maxEchoed bounds, in bytes, each part of a request that a response repeats. It is the size of
	// the largest header that common clients send, and the kernel takes such a response at once, so
	// no memory is held for a client that does not read it.
	maxEchoed = 8 << 10

	// maxLogged bounds, in bytes, each part of a request that a log line repeats.
	maxLogged = 1 << 10

	timeLayout = "2006-01-02T15:04:05.000Z07:00" // RFC 3339 with milliseconds
)

// infoResponse is the response to GET /. Only its second part differs between responses.
type infoResponse struct {
	serviceAndSystem
	runtimeAndRequest
	endpointList
}

type serviceAndSystem struct {
	Service serviceInfo `json:"service"`
	System  systemInfo  `json:"system"`
}

type runtimeAndRequest struct {
	Runtime runtimeInfo `json:"runtime"`
	Request requestInfo `json:"request"`
}

type endpointList struct {
	Endpoints []endpoint `json:"endpoints"`
}

type serviceInfo struct {
	Name        string `json:"name"`
	Version     string `json:"version"`
	Description string `json:"description"`
	Framework   string `json:"framework"`
}

type systemInfo struct {
	Hostname        string `json:"hostname"`
	Platform        string `json:"platform"`
	PlatformVersion string `json:"platform_version"`
	Architecture    string `json:"architecture"`
	CPUCount        int    `json:"cpu_count"`
	GoVersion       string `json:"go_version"`

	// The container's limits; null where unlimited or unknown.
	CPULimit    *float64 `json:"cpu_limit"` // in CPUs, such as 0.5
	MemoryLimit *int64   `json:"memory_limit_bytes"`
}

type runtimeInfo struct {
	UptimeSeconds int64  `json:"uptime_seconds"`
	UptimeHuman   string `json:"uptime_human"`
	CurrentTime   string `json:"current_time"`
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
}

// healthResponse is the response to GET /health.
type healthResponse struct {
	Status        string `json:"status"`
	Timestamp     string `json:"timestamp"`
	UptimeSeconds int64  `json:"uptime_seconds"`
}

// appendJSON appends the response as a line of JSON. With encoding/json, /health loses 0.05 of its
// throughput ratio.
func (h healthResponse) appendJSON(b []byte) []byte {
	b = append(b, `{"status":"`...)
	b = append(b, h.Status...)
	b = append(b, `","timestamp":"`...)
	b = append(b, h.Timestamp...)
	b = append(b, `","uptime_seconds":`...)
	b = strconv.AppendInt(b, h.UptimeSeconds, 10)
	return append(b, "}\n"...)
}

// errorResponse is the response to every other request.
type errorResponse struct {
	Error   string `json:"error"`
	Message string `json:"message"`
	Path    string `json:"path"`
}

// logLine is the log line of a request, in the form of slog's JSON. With slog itself, / loses 0.09 of
// its throughput ratio.
type logLine struct {
	Time       string  `json:"time"`
	Level      string  `json:"level"`
	Message    string  `json:"msg"`
	Method     string  `json:"method"`
	Path       string  `json:"path"`
	Status     int     `json:"status"`
	Bytes      int     `json:"bytes"` // of the body
	DurationMS float64 `json:"duration_ms"`
	ClientIP   string  `json:"client_ip"`
	UserAgent  string  `json:"user_agent"`
}

// service is the handler of every request.
type service struct {
	log       *slog.Logger
	logOutput io.Writer // where log writes
	now       func() time.Time
	start     time.Time
	location  *time.Location
	timezone  string
	handlers  map[string]handler // by path
	endpoints []endpoint

	// Every infoResponse begins and ends with these. Encoding them for each response costs 0.04 of the
	// throughput ratio of /.
	infoStart, infoEnd []byte

	draining atomic.Bool // set when the service is told to stop
}

// handler answers GET and, without the body, HEAD. It writes the body and returns the status.
type handler func(r *http.Request, body *jsonBuffer) (status int)

// newService returns a service without endpoints that starts now. log must write to logOutput, which
// must take writes from several goroutines at once, as a file does. Responses show times in location,
// under the name timezone or, if that is empty, the location's abbreviation.
func newService(log *slog.Logger, logOutput io.Writer, now func() time.Time, location *time.Location, timezone string, system systemInfo) *service {
	s := &service{
		log: log, logOutput: logOutput, now: now, start: now(), location: location, timezone: timezone,
		handlers: make(map[string]handler),
	}
	start := newJSONBuffer()
	start.WriteByte('{')
	start.encodeMembers(serviceAndSystem{serviceInfo{serviceName, version, serviceDescription, serviceFramework}, system})
	start.WriteByte(',')
	s.infoStart = start.Bytes()
	return s
}

// handle makes h the handler of path. It must not be called when the service serves already.
func (s *service) handle(path, description string, h handler) {
	s.handlers[path] = h
	s.endpoints = append(s.endpoints, endpoint{path, http.MethodGet, description})
	end := newJSONBuffer()
	end.WriteByte(',')
	end.encodeMembers(endpointList{s.endpoints})
	end.WriteString("}\n")
	s.infoEnd = end.Bytes()
}

// info answers GET /.
func (s *service) info(r *http.Request, body *jsonBuffer) int {
	now := s.now()
	local := now.In(s.location)
	timezone := s.timezone
	if timezone == "" {
		timezone, _ = local.Zone()
	}
	uptime := now.Sub(s.start)
	body.Write(s.infoStart)
	body.encodeMembers(&runtimeAndRequest{
		runtimeInfo{
			UptimeSeconds: int64(uptime / time.Second),
			UptimeHuman:   formatUptime(uptime),
			CurrentTime:   local.Format(timeLayout),
			Timezone:      timezone,
		},
		requestInfo{
			ClientIP:  clientIP(r),
			UserAgent: truncate(r.UserAgent(), maxEchoed),
			Method:    http.MethodGet, // for HEAD too: its Content-Length must be that of GET (RFC 9110, section 8.6)
			Path:      truncate(r.URL.Path, maxEchoed),
		},
	})
	body.Write(s.infoEnd)
	return http.StatusOK
}

// health answers GET /health: 200 until the service is told to stop, and 503 from then on.
func (s *service) health(_ *http.Request, body *jsonBuffer) int {
	now := s.now()
	response := healthResponse{
		Status:        "healthy",
		Timestamp:     now.UTC().Format(timeLayout),
		UptimeSeconds: int64(now.Sub(s.start) / time.Second),
	}
	status := http.StatusOK
	if s.draining.Load() {
		status, response.Status = http.StatusServiceUnavailable, "draining"
	}
	body.Write(response.appendJSON(body.AvailableBuffer()))
	return status
}

// startDraining makes health checks fail and each response close its connection.
func (s *service) startDraining() { s.draining.Store(true) }

// Header values are made once for all responses, because net/http does not change them.
var (
	contentTypeJSON = []string{"application/json"} // without a charset: RFC 8259, section 11
	noStore         = []string{"no-store"}
	allowedMethods  = []string{"GET, HEAD"}
	closeConnection = []string{"close"}
)

// ServeHTTP answers and logs every request.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	received := time.Now()
	if r.URL.Path == "" && r.Method != http.MethodConnect {
		r.URL.Path = "/" // GET http://host asks for the root: RFC 9112, section 3.2.2
	}
	body := newJSONBuffer()
	status := s.respond(r, body)

	header := w.Header()
	header["Content-Type"] = contentTypeJSON
	header["Cache-Control"] = noStore
	if status == http.StatusMethodNotAllowed {
		header["Allow"] = allowedMethods
	}
	hasBody := r.ContentLength != 0
	if hasBody || s.draining.Load() {
		// To keep the connection, net/http would wait for the whole body, which nobody reads, before
		// it sends the response.
		header["Connection"] = closeConnection
	}
	if hasBody || body.Len() > 1<<10 {
		header["Content-Length"] = []string{strconv.Itoa(body.Len())} // otherwise net/http sets it
	}
	w.WriteHeader(status)
	written, _ := w.Write(body.Bytes()) // a failed write means that the client has disconnected
	if r.Method == http.MethodHead {
		written = 0 // net/http has counted the body but not sent it
	}
	s.logRequest(r, status, written, received)
}

// respond writes the body of the response and returns its status. A panic becomes a 500.
func (s *service) respond(r *http.Request, body *jsonBuffer) (status int) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("panic", "error", fmt.Sprint(v), "method", truncate(r.Method, maxLogged),
				"path", truncate(r.URL.Path, maxLogged), "stack", string(debug.Stack()))
			body.Reset()
			status = fail(r, body, http.StatusInternalServerError, "The service failed to answer; its log says why.")
		}
	}()
	// Not http.ServeMux, because it redirects paths such as //health, and matches methods only since Go 1.22.
	h, found := s.handlers[r.URL.Path]
	switch {
	case !found:
		return fail(r, body, http.StatusNotFound, "No such path; GET / lists the endpoints.")
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return fail(r, body, http.StatusMethodNotAllowed, truncate(r.Method, maxEchoed)+" is not allowed here; use GET or HEAD.")
	}
	return h(r, body)
}

func fail(r *http.Request, body *jsonBuffer, status int, message string) int {
	body.encode(errorResponse{http.StatusText(status), message, truncate(r.URL.Path, maxEchoed)})
	return status
}

// logRequest logs a successful health check at DEBUG, a 5xx at ERROR and every other request at INFO.
func (s *service) logRequest(r *http.Request, status, bytes int, received time.Time) {
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
	duration := time.Since(received)
	line := newJSONBuffer()
	line.encode(&logLine{
		Time:       received.Add(duration).Format(time.RFC3339Nano),
		Level:      level.String(),
		Message:    "request",
		Method:     truncate(r.Method, maxLogged),
		Path:       truncate(r.URL.Path, maxLogged),
		Status:     status,
		Bytes:      bytes,
		DurationMS: float64(duration.Microseconds()) / 1000,
		ClientIP:   clientIP(r),
		UserAgent:  truncate(r.UserAgent(), maxLogged),
	})
	s.logOutput.Write(line.Bytes())
}

// jsonBuffer encodes values as JSON.
type jsonBuffer struct {
	bytes.Buffer
	encoder *json.Encoder
}

func newJSONBuffer() *jsonBuffer {
	b := &jsonBuffer{}
	b.encoder = json.NewEncoder(&b.Buffer)
	// With angle brackets escaped, six bytes for one, a client could get a response of several times
	// the size of its request.
	b.encoder.SetEscapeHTML(false)
	return b
}

// encode appends v and a newline.
func (b *jsonBuffer) encode(v any) {
	if err := b.encoder.Encode(v); err != nil {
		panic(err) // a type of this file that JSON cannot express
	}
}

// encodeMembers appends the members of the object v, without its braces.
func (b *jsonBuffer) encodeMembers(v any) {
	start := b.Len()
	b.encode(v)
	object := b.Bytes()[start:]
	members := object[len("{") : len(object)-len("}\n")]
	copy(object, members)
	b.Truncate(start + len(members))
}

// newSystemInfo describes the machine whose root directory is root, and the container's limits.
func newSystemInfo(root fs.FS, limits platform.Limits) systemInfo {
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "unknown"
	}
	return systemInfo{
		Hostname:        hostname,
		Platform:        runtime.GOOS,
		PlatformVersion: platform.Version(root),
		Architecture:    runtime.GOARCH,
		CPUCount:        runtime.NumCPU(),
		GoVersion:       runtime.Version(),
		CPULimit:        limits.CPUs,
		MemoryLimit:     limits.Memory,
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

// truncate returns at most the first limit bytes of s, as valid UTF-8: each run of other bytes becomes
// one U+FFFD.
func truncate(s string, limit int) string {
	return strings.ToValidUTF8(s[:min(len(s), limit)], "\ufffd")
}

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
