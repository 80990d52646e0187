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
	"sync"
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

// requestLine is what the log says of a request, in log/slog's form. It is encoded like an answer: with
// slog itself, / serves about a tenth fewer requests.
type requestLine struct {
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
	log      *slog.Logger
	out      io.Writer // where log writes
	now      func() time.Time
	start    time.Time
	location *time.Location
	timezone string // the name of location where the user gave one
	routes   []route
	before   []byte      // what an infoResponse has before its varyingInfo
	after    []byte      // and after it
	draining atomic.Bool // set once, when the stop begins
	lines    sync.Pool   // of *line
}

// line is one line of JSON. Lines are used again: they would be most of the handlers' garbage.
type line struct {
	bytes.Buffer
	encoder *json.Encoder
}

// route is one endpoint. It answers GET and, without the body, HEAD.
type route struct {
	path        string
	description string
	answer      func(r *http.Request, body *line) (status int)
}

// newService returns the service, started now. log writes to out, which has to take each write as a
// whole, also of several goroutines at once, as a file does. Times are shown in location, under the
// name timezone or, where that is empty, the zone's abbreviation.
func newService(log *slog.Logger, out io.Writer, now func() time.Time, location *time.Location, timezone string, system systemInfo) *service {
	s := &service{log: log, out: out, now: now, start: now(), location: location, timezone: timezone}
	s.routes = []route{
		{"/", "Service information", s.info},
		{"/health", "Health check", s.health},
	}
	constant := infoResponse{
		Service: serviceInfo{serviceName, version, serviceDescription, serviceFramework},
		System:  system,
	}
	for _, route := range s.routes {
		constant.Endpoints = append(constant.Endpoints, endpoint{route.path, http.MethodGet, route.description})
	}
	whole, varying := s.newLine(), s.newLine()
	whole.encode(constant)
	varying.encodeMembers(constant.varyingInfo)
	s.before, s.after, _ = bytes.Cut(whole.Bytes(), varying.Bytes())
	return s
}

func (s *service) info(r *http.Request, body *line) int {
	now := s.now()
	local := now.In(s.location)
	timezone := s.timezone
	if timezone == "" {
		timezone, _ = local.Zone()
	}
	uptime := now.Sub(s.start)
	body.Write(s.before)
	body.encodeMembers(varyingInfo{
		Runtime: runtimeInfo{
			UptimeSeconds: int64(uptime / time.Second),
			UptimeHuman:   humanDuration(uptime),
			CurrentTime:   local.Format(timeLayout),
			Timezone:      timezone,
		},
		// HEAD must have GET's Content-Length (RFC 9110, section 8.6), so it is answered as GET.
		Request: requestInfo{clientIP(r), echo(r.UserAgent(), maxEcho), http.MethodGet, echo(r.URL.Path, maxEcho)},
	})
	body.Write(s.after)
	return http.StatusOK
}

func (s *service) health(_ *http.Request, body *line) int {
	now := s.now()
	status, word := http.StatusOK, "healthy"
	if s.draining.Load() {
		status, word = http.StatusServiceUnavailable, "draining"
	}
	body.encode(healthResponse{
		Status:        word,
		Timestamp:     now.UTC().Format(timeLayout),
		UptimeSeconds: int64(now.Sub(s.start) / time.Second),
	})
	return status
}

// ServeHTTP answers a request and logs it. Every answer is written here.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	received := time.Now()
	body := s.newLine()
	defer s.lines.Put(body)
	status := s.answer(r, body)

	// Assigned, not Set: the names are canonical already, and looking at that costs as much as the
	// rest of /health.
	header := w.Header()
	header["Content-Type"] = []string{"application/json"} // no charset: RFC 8259, section 11
	header["Cache-Control"] = []string{"no-store"}
	header["X-Content-Type-Options"] = []string{"nosniff"}
	if status == http.StatusMethodNotAllowed {
		header["Allow"] = []string{allowedMethods}
	}
	unread := r.ContentLength != 0 // a body, which nobody reads
	if unread || s.draining.Load() {
		// To keep the connection, net/http would read up to 256 KB of the body before it sends the
		// answer, and wait up to readTimeout for them.
		header["Connection"] = []string{"close"}
	}
	if unread || body.Len() > 1<<10 { // else net/http adds it, at less cost
		header["Content-Length"] = []string{strconv.Itoa(body.Len())}
	}
	w.WriteHeader(status)
	written, _ := w.Write(body.Bytes()) // a peer that has gone is no event of its own
	if r.Method == http.MethodHead {
		written = 0 // net/http has taken the length of the body and no more
	}
	s.logRequest(r, status, written, received)
}

// answer finds the route, writes its answer to body and returns the status. A panic on the way is
// logged and becomes a 500.
func (s *service) answer(r *http.Request, body *line) (status int) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("panic", "error", fmt.Sprint(v), "method", echo(r.Method, maxLogged), "path", echo(r.URL.Path, maxLogged), "stack", string(debug.Stack()))
			status = failure(r, body, http.StatusInternalServerError, "The service failed to answer; its log says why.")
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
			return failure(r, body, http.StatusMethodNotAllowed, echo(r.Method, maxEcho)+" is not allowed here; use GET or HEAD.")
		}
		return route.answer(r, body)
	}
	return failure(r, body, http.StatusNotFound, "No such path; GET / lists the endpoints.")
}

// failure makes body the error that says status, and returns status.
func failure(r *http.Request, body *line, status int, message string) int {
	body.Reset()
	body.encode(errorResponse{http.StatusText(status), message, echo(r.URL.Path, maxEcho)})
	return status
}

// newLine returns an empty line, to be put back into s.lines.
func (s *service) newLine() *line {
	if l, ok := s.lines.Get().(*line); ok {
		l.Reset()
		return l
	}
	l := &line{}
	l.encoder = json.NewEncoder(&l.Buffer)
	// Angle brackets stay as they are: six bytes for one would let a request make an answer of many
	// times its size.
	l.encoder.SetEscapeHTML(false)
	return l
}

// encode appends v as JSON, and a newline.
func (l *line) encode(v any) {
	if err := l.encoder.Encode(v); err != nil {
		panic(err) // none of the types above can do this
	}
}

// encodeMembers appends the members of the object v, with a comma before instead of braces around.
func (l *line) encodeMembers(v any) {
	start := l.Len()
	l.encode(v)
	l.Bytes()[start] = ','
	l.Truncate(l.Len() - len("}\n"))
}

// echo returns s as it may be repeated: no more than most bytes of it, and each run of bytes that are
// not UTF-8 as one U+FFFD.
func echo(s string, most int) string {
	return strings.ToValidUTF8(s[:min(len(s), most)], "\ufffd")
}

// logRequest writes the request's line: DEBUG for a health check that succeeded, ERROR for a 5xx,
// INFO otherwise.
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
	took := time.Since(received)
	line := s.newLine()
	defer s.lines.Put(line)
	line.encode(requestLine{
		Time:       received.Add(took).Format(time.RFC3339Nano),
		Level:      level.String(),
		Message:    "request",
		Method:     echo(r.Method, maxLogged),
		Path:       echo(r.URL.Path, maxLogged),
		Status:     status,
		Bytes:      bytes,
		DurationMS: float64(took.Microseconds()) / 1000,
		ClientIP:   clientIP(r),
		UserAgent:  echo(r.UserAgent(), maxLogged),
	})
	s.out.Write(line.Bytes())
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
