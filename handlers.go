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
	"sync/atomic"
	"time"
)

const (
	serviceName        = "devops-info-service"
	serviceDescription = "DevOps course info service"
	serviceFramework   = "Go net/http"

	allowedMethods = "GET, HEAD"

	// maxEcho bounds, in bytes, what an answer repeats of a request: the largest
	// header that common clients send, and little enough for the kernel to take the answer at once,
	// so that no memory is held for a peer that does not read it.
	maxEcho = 8 << 10

	// maxLogged is the same for a field of a log line.
	maxLogged = 1 << 10

	// RFC 3339 with milliseconds.
	timeLayout = "2006-01-02T15:04:05.000Z07:00"
)

// infoResponse answers GET /.
type infoResponse struct {
	Service serviceInfo `json:"service"`
	System  systemInfo  `json:"system"`
	varyingInfo
	Endpoints []endpoint `json:"endpoints"`
}

// varyingInfo is what differs from one answer to the next. The rest is encoded once.
type varyingInfo struct {
	Runtime runtimeInfo `json:"runtime"`
	Request requestInfo `json:"request"`
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

	// null where unlimited or unknown.
	CPULimit    *float64 `json:"cpu_limit"`          // CPUs, such as 0.5
	MemoryLimit *int64   `json:"memory_limit_bytes"` // of the container
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

// healthResponse answers GET /health.
type healthResponse struct {
	Status        string `json:"status"`
	Timestamp     string `json:"timestamp"`
	UptimeSeconds int64  `json:"uptime_seconds"`
}

// errorResponse answers everything else.
type errorResponse struct {
	Error   string `json:"error"`
	Message string `json:"message"`
	Path    string `json:"path"`
}

// service is the handler of every request.
type service struct {
	log      *slog.Logger
	now      func() time.Time
	start    time.Time
	location *time.Location
	timezone string // the name of location where the user gave one
	routes   []route
	before   []byte      // what an infoResponse has before its varyingInfo
	after    []byte      // and after it
	draining atomic.Bool // set once, when the stop begins
}

// route is one endpoint. It answers GET and, without the body, HEAD.
type route struct {
	path        string
	description string
	answer      func(*http.Request) (status int, body []byte)
}

// newService returns the service, started now. Times are shown in location, under the name timezone
// or, where that is empty, the zone's abbreviation.
func newService(log *slog.Logger, now func() time.Time, location *time.Location, timezone string, system systemInfo) *service {
	s := &service{log: log, now: now, start: now(), location: location, timezone: timezone}
	s.routes = []route{
		{"/", "Service information", s.info},
		{"/health", "Health check", s.health},
	}
	whole := infoResponse{
		Service: serviceInfo{serviceName, version, serviceDescription, serviceFramework},
		System:  system,
	}
	for _, route := range s.routes {
		whole.Endpoints = append(whole.Endpoints, endpoint{route.path, http.MethodGet, route.description})
	}
	s.before, s.after, _ = bytes.Cut(encode(whole), whole.varyingInfo.encode())
	return s
}

// encode returns the members of v as JSON, without the braces around them.
func (v varyingInfo) encode() []byte {
	object := encode(v)
	return object[len("{") : len(object)-len("}\n")]
}

func (s *service) info(r *http.Request) (int, []byte) {
	now := s.now()
	local := now.In(s.location)
	timezone := s.timezone
	if timezone == "" {
		timezone, _ = local.Zone()
	}
	uptime := now.Sub(s.start)
	varying := varyingInfo{
		Runtime: runtimeInfo{
			UptimeSeconds: int64(uptime / time.Second),
			UptimeHuman:   humanDuration(uptime),
			CurrentTime:   local.Format(timeLayout),
			Timezone:      timezone,
		},
		// HEAD must have GET's Content-Length (RFC 9110, section 8.6), so it is answered as GET.
		Request: requestInfo{clientIP(r), echo(r.UserAgent(), maxEcho), http.MethodGet, echo(r.URL.Path, maxEcho)},
	}.encode()
	return http.StatusOK, bytes.Join([][]byte{s.before, varying, s.after}, nil)
}

func (s *service) health(*http.Request) (int, []byte) {
	now := s.now()
	status, word := http.StatusOK, "healthy"
	if s.draining.Load() {
		status, word = http.StatusServiceUnavailable, "draining"
	}
	return status, encode(healthResponse{
		Status:        word,
		Timestamp:     now.UTC().Format(timeLayout),
		UptimeSeconds: int64(now.Sub(s.start) / time.Second),
	})
}

// ServeHTTP answers a request and logs it. Every answer is written here.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	received := time.Now()
	status, body := s.answer(r)

	// Assigned, not Set: the names are canonical already, and looking at that costs as much as the
	// rest of /health.
	header := w.Header()
	header["Content-Type"] = []string{"application/json"} // no charset: RFC 8259, section 11
	header["Content-Length"] = []string{strconv.Itoa(len(body))}
	header["Cache-Control"] = []string{"no-store"}
	header["X-Content-Type-Options"] = []string{"nosniff"}
	if status == http.StatusMethodNotAllowed {
		header["Allow"] = []string{allowedMethods}
	}
	if s.draining.Load() || r.ContentLength != 0 {
		// Nobody reads the body. To keep the connection, net/http would read up to 256 KB of it
		// before it sends the answer, and wait up to readTimeout for them.
		header["Connection"] = []string{"close"}
	}
	w.WriteHeader(status)
	var written int
	if r.Method != http.MethodHead {
		written, _ = w.Write(body) // a peer that has gone is no event of its own
	}
	s.logRequest(r, status, written, time.Since(received))
}

// answer finds the route and returns its status and body. A panic on the way is logged and becomes
// a 500.
func (s *service) answer(r *http.Request) (status int, body []byte) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("panic", "error", fmt.Sprint(v), "method", echo(r.Method, maxLogged), "path", echo(r.URL.Path, maxLogged), "stack", string(debug.Stack()))
			status, body = s.failure(r, http.StatusInternalServerError, "The service failed to answer; its log says why.")
		}
	}()
	if r.URL.Path == "" && r.Method != http.MethodConnect {
		r.URL.Path = "/" // GET http://host HTTP/1.1 asks for the root: RFC 9112, section 3.2.2
	}
	// Not http.ServeMux: it redirects paths such as //health, and has no methods before Go 1.22.
	for _, route := range s.routes {
		if route.path != r.URL.Path {
			continue
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			return s.failure(r, http.StatusMethodNotAllowed, echo(r.Method, maxEcho)+" is not allowed here; use GET or HEAD.")
		}
		return route.answer(r)
	}
	return s.failure(r, http.StatusNotFound, "No such path; GET / lists the endpoints.")
}

// failure returns status and the error that says so.
func (s *service) failure(r *http.Request, status int, message string) (int, []byte) {
	return status, encode(errorResponse{http.StatusText(status), message, echo(r.URL.Path, maxEcho)})
}

// encode returns v as one line of JSON. Angle brackets stay as they are: six bytes for one would let
// a request make an answer of many times its size.
func encode(v any) []byte {
	var line bytes.Buffer
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		panic(err) // none of the response types above can do this
	}
	return line.Bytes()
}

// echo returns s as it may be repeated: no more than most bytes of it, and each run of bytes that are
// not UTF-8 as one U+FFFD.
func echo(s string, most int) string {
	return strings.ToValidUTF8(s[:min(len(s), most)], "\ufffd")
}

// logRequest writes the request's line: DEBUG for a health check that succeeded, ERROR for a 5xx,
// INFO otherwise.
func (s *service) logRequest(r *http.Request, status, bytes int, took time.Duration) {
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
	// Not LogAttrs, which would walk the stack for a source line that is not logged.
	record := slog.NewRecord(time.Now(), level, "request", 0)
	record.AddAttrs(
		slog.String("method", echo(r.Method, maxLogged)),
		slog.String("path", echo(r.URL.Path, maxLogged)),
		slog.Int("status", status),
		slog.Int("bytes", bytes),
		slog.Float64("duration_ms", float64(took.Microseconds())/1000),
		slog.String("client_ip", clientIP(r)),
		slog.String("user_agent", echo(r.UserAgent(), maxLogged)),
	)
	s.log.Handler().Handle(r.Context(), record)
}

// clientIP is the address of the connection's peer, without port, brackets or interface; an
// IPv4-mapped IPv6 address is written as IPv4. Headers such as X-Forwarded-For do not count: any
// client can set them.
func clientIP(r *http.Request) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return peer.Addr().Unmap().WithZone("").String()
}

// humanDuration words the two largest units of d that are not zero: "1 hour, 3 minutes". Below a
// second it is "0 seconds".
func humanDuration(d time.Duration) string {
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
	var words []string
	for _, unit := range units {
		if unit.count == 0 || len(words) == 2 {
			continue
		}
		word := strconv.FormatInt(unit.count, 10) + " " + unit.name
		if unit.count != 1 {
			word += "s"
		}
		words = append(words, word)
	}
	if len(words) == 0 {
		return "0 seconds"
	}
	return strings.Join(words, ", ")
}

// readSystem describes the machine whose root directory is root, and the container's limits. It stays
// as it was at the start.
func readSystem(root fs.FS, limits limits) systemInfo {
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "unknown"
	}
	return systemInfo{
		Hostname:        hostname,
		Platform:        runtime.GOOS,
		PlatformVersion: platformVersion(root),
		Architecture:    runtime.GOARCH,
		CPUCount:        runtime.NumCPU(),
		GoVersion:       runtime.Version(),
		CPULimit:        limits.cpus,
		MemoryLimit:     limits.memory,
	}
}

// platformVersion is PRETTY_NAME of /etc/os-release, whose values are quoted as in a shell
// (os-release(5)), or the operating system's name where there is none.
func platformVersion(root fs.FS) string {
	data, _ := fs.ReadFile(root, "etc/os-release")
	for _, line := range strings.Split(string(data), "\n") {
		value, found := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME=")
		if !found {
			continue
		}
		if n := len(value); n > 1 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		value = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\$`, `$`, "\\`", "`").Replace(value)
		if value != "" {
			return value
		}
	}
	return runtime.GOOS
}
