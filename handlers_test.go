package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"
)

// syncBuffer collects a log that the server writes while the test reads it.
type syncBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// lines returns a log's lines with this message, waiting until there are at least n.
func lines(t testing.TB, log fmt.Stringer, message string, n int) []map[string]any {
	t.Helper()
	var found []map[string]any
	waitFor(t, fmt.Sprintf("%d log lines %q", n, message), func() bool {
		found = nil
		for _, text := range strings.Split(log.String(), "\n") {
			var line map[string]any
			if json.Unmarshal([]byte(text), &line) == nil && line["msg"] == message {
				found = append(found, line)
			}
		}
		return len(found) >= n
	})
	return found
}

// waitFor polls until ready, for ten seconds at most.
func waitFor(t testing.TB, what string, ready func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ready(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}

// running is the service on a real socket of this process, with a clock that the test holds.
type running struct {
	address string
	log     *syncBuffer
	uptime  atomic.Int64 // what the clock has advanced since the start, in nanoseconds
	broken  atomic.Bool  // makes the clock panic
}

var started = time.Date(2024, 2, 29, 23, 30, 0, 123456789, time.UTC)

// start serves until the test ends and then expects a clean stop.
func start(t testing.TB, timezone string) *running {
	t.Helper()
	location, err := time.LoadLocation(timezone)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &running{address: listener.Addr().String(), log: &syncBuffer{}}
	clock := func() time.Time {
		if s.broken.Load() {
			panic("the clock is broken")
		}
		// In a zone of its own, so that an answer in UTC or in another is one that was converted.
		return started.Add(time.Duration(s.uptime.Load())).In(time.FixedZone("test", 3600))
	}
	log := slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	service := newService(log, s.log, clock, location, timezone, readSystem(os.DirFS("/"), limits{}))
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan int)
	go func() {
		stopped <- serve(ctx, nil, listener.(*net.TCPListener), service, config{shutdownTimeout: 5 * time.Second}, log)
	}()
	t.Cleanup(func() {
		cancel()
		if code := <-stopped; code != exitOK {
			t.Errorf("serve returned %d, want %d; log:\n%s", code, exitOK, s.log)
		}
	})
	return s
}

// send writes bytes to a new connection and reads the answer to a request of that method.
func send(t testing.TB, address, method, bytes string) (*http.Response, string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, bytes); err != nil {
		t.Fatal(err)
	}
	return receive(t, bufio.NewReader(conn), method)
}

// receive reads the answer to a request of that method.
func receive(t testing.TB, reader *bufio.Reader, method string) (*http.Response, string) {
	t.Helper()
	response, err := http.ReadResponse(reader, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("reading the answer: %v", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("reading the body: %v", err)
	}
	return response, string(body)
}

// get sends a plain request, headers each ending in CRLF.
func get(t testing.TB, address, method, target, headers string) (*http.Response, string) {
	t.Helper()
	return send(t, address, method, method+" "+target+" HTTP/1.1\r\nHost: localhost\r\n"+headers+"\r\n")
}

// info asks for / and decodes it.
func info(t testing.TB, address, headers string) infoResponse {
	t.Helper()
	_, body := get(t, address, "GET", "/", headers)
	var decoded infoResponse
	if err := json.Unmarshal([]byte(body), &decoded); err != nil {
		t.Fatalf("%v in %q", err, body)
	}
	return decoded
}

func TestPathsAndMethods(t *testing.T) {
	s := start(t, "UTC")
	s.uptime.Store(int64(65 * time.Second))

	const (
		healthy  = `{"status":"healthy","timestamp":"2024-02-29T23:31:05.123Z","uptime_seconds":65}` + "\n"
		anything = ""
	)
	notFound := func(path string) string {
		return `{"error":"Not Found","message":"No such path; GET / lists the endpoints.","path":"` + path + `"}` + "\n"
	}
	notAllowed := func(method, path string) string {
		return `{"error":"Method Not Allowed","message":"` + method + ` is not allowed here; use GET or HEAD.","path":"` + path + `"}` + "\n"
	}
	tests := []struct {
		method, target string
		status         int
		body           string
	}{
		{"GET", "/", 200, anything},
		{"GET", "/health", 200, healthy},
		{"GET", "/health?verbose=1&x=%00", 200, healthy},
		{"GET", "/%68ealth", 200, healthy}, // equivalent by RFC 3986, section 6.2.2.2
		{"GET", "http://localhost/health", 200, healthy},
		{"GET", "http://localhost", 200, anything},
		{"HEAD", "/", 200, anything},
		{"HEAD", "/health", 200, anything},
		{"GET", "/nope", 404, notFound("/nope")},
		{"GET", "/health/", 404, notFound("/health/")},
		{"GET", "//health", 404, notFound("//health")},
		{"GET", "/./health", 404, notFound("/./health")},
		{"GET", "/x/../health", 404, notFound("/x/../health")},
		{"GET", "/Health", 404, notFound("/Health")},
		{"GET", "/%3Cb%3E&", 404, notFound("/<b>&")}, // not escaped: that would be six bytes for one
		{"GET", "/%ff", 404, anything},
		{"POST", "/nope", 404, notFound("/nope")},
		{"HEAD", "/nope", 404, anything},
		{"OPTIONS", "*", 404, notFound("*")},
		{"CONNECT", "localhost:80", 404, notFound("")},
		{"PRI", "*", 404, notFound("*")},
	}
	for _, path := range []string{"/", "/health"} {
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "BREW"} {
			tests = append(tests, struct {
				method, target string
				status         int
				body           string
			}{method, path, 405, notAllowed(method, path)})
		}
	}
	for _, test := range tests {
		t.Run(test.method+" "+test.target, func(t *testing.T) {
			response, body := get(t, s.address, test.method, test.target, "")
			if response.StatusCode != test.status {
				t.Errorf("status %d, want %d", response.StatusCode, test.status)
			}
			want := map[string]string{
				"Content-Type":           "application/json",
				"Cache-Control":          "no-store",
				"X-Content-Type-Options": "nosniff",
			}
			if test.status == 405 {
				want["Allow"] = "GET, HEAD"
			}
			for _, name := range []string{"Content-Type", "Cache-Control", "X-Content-Type-Options", "Allow"} {
				if got := response.Header.Get(name); got != want[name] {
					t.Errorf("%s: %q, want %q", name, got, want[name])
				}
			}
			if test.method == "HEAD" {
				if body != "" {
					t.Errorf("HEAD has the body %q", body)
				}
				return
			}
			if test.body != anything && body != test.body {
				t.Errorf("body\n%q, want\n%q", body, test.body)
			}
			if got := response.Header.Get("Content-Length"); got != strconv.Itoa(len(body)) {
				t.Errorf("Content-Length %q for %d bytes", got, len(body))
			}
			var compact bytes.Buffer
			if err := json.Compact(&compact, []byte(body)); err != nil || compact.String()+"\n" != body {
				t.Errorf("not one compact line of JSON (%v): %q", err, body)
			}
		})
	}
}

func TestHeadAnswersAsGet(t *testing.T) {
	s := start(t, "UTC")
	for _, test := range []struct {
		path  string
		agent int // length of User-Agent: short and long answers get their Content-Length in different places
	}{{"/", 1}, {"/", 300}, {"/", 1200}, {"/", 4000}, {"/", 8000}, {"/health", 1}, {"/nope", 1}, {"/" + strings.Repeat("x", 5000), 1}} {
		// The same connection serves both, so a body after HEAD would show.
		conn, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		reader := bufio.NewReader(conn)
		var headers [2]http.Header
		for i, method := range []string{"HEAD", "GET"} {
			fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: %s\r\n\r\n", method, test.path, strings.Repeat("a", test.agent))
			response, body := receive(t, reader, method)
			if got := response.Header.Get("Content-Length"); method == "GET" && got != strconv.Itoa(len(body)) {
				t.Errorf("%.9s, agent of %d: Content-Length %q for %d bytes", test.path, test.agent, got, len(body))
			}
			response.Header.Del("Date")
			headers[i] = response.Header
		}
		if !reflect.DeepEqual(headers[0], headers[1]) {
			t.Errorf("%.9s, agent of %d: HEAD answers %v, GET %v", test.path, test.agent, headers[0], headers[1])
		}
	}
}

// keys lists an object's keys in order, "a.b" for b in a; those of a list's first object too.
func keys(t *testing.T, text string) []string {
	t.Helper()
	var found []string
	decoder := json.NewDecoder(strings.NewReader(text))
	var walk func(prefix string)
	walk = func(prefix string) {
		token, err := decoder.Token()
		if err != nil {
			t.Fatalf("%v in %q", err, text)
		}
		switch token {
		case json.Delim('{'):
			for decoder.More() {
				key, _ := decoder.Token()
				found = append(found, prefix+key.(string))
				walk(prefix + key.(string) + ".")
			}
			decoder.Token()
		case json.Delim('['):
			for decoder.More() {
				walk(prefix)
			}
			decoder.Token()
		}
	}
	walk("")
	return found
}

func TestKeysInOrder(t *testing.T) {
	s := start(t, "UTC")
	for path, want := range map[string]string{
		"/": "service service.name service.version service.description service.framework" +
			" system system.hostname system.platform system.platform_version system.architecture system.cpu_count system.go_version system.cpu_limit system.memory_limit_bytes" +
			" runtime runtime.uptime_seconds runtime.uptime_human runtime.current_time runtime.timezone" +
			" request request.client_ip request.user_agent request.method request.path" +
			" endpoints endpoints.path endpoints.method endpoints.description endpoints.path endpoints.method endpoints.description",
		"/health": "status timestamp uptime_seconds",
		"/nope":   "error message path",
	} {
		_, body := get(t, s.address, "GET", path, "")
		if got := strings.Join(keys(t, body), " "); got != want {
			t.Errorf("%s has the keys\n%s, want\n%s", path, got, want)
		}
	}
}

func TestInfo(t *testing.T) {
	s := start(t, "UTC")
	got := info(t, s.address, "User-Agent: test/1\r\nX-Forwarded-For: 203.0.113.9\r\nX-Real-IP: 203.0.113.9\r\nForwarded: for=203.0.113.9\r\n")
	hostname, _ := os.Hostname()
	want := infoResponse{
		Service: serviceInfo{"devops-info-service", "1.0.0", "DevOps course info service", "Go net/http"},
		System: systemInfo{
			Hostname:        hostname,
			Platform:        runtime.GOOS,
			PlatformVersion: platformVersion(os.DirFS("/")),
			Architecture:    runtime.GOARCH,
			CPUCount:        runtime.NumCPU(),
			GoVersion:       runtime.Version(),
		},
		varyingInfo: varyingInfo{
			Runtime: runtimeInfo{0, "0 seconds", "2024-02-29T23:30:00.123Z", "UTC"},
			Request: requestInfo{"127.0.0.1", "test/1", "GET", "/"},
		},
		Endpoints: []endpoint{
			{"/", "GET", "Service information"},
			{"/health", "GET", "Health check"},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
}

func TestQueryAndBodyChangeNothing(t *testing.T) {
	s := start(t, "UTC")
	_, plain := get(t, s.address, "GET", "/", "")
	for name, request := range map[string]string{
		"query":        "GET /?a=1;b&path=/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"body":         "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\n\r\n{\"path\":\"x\"}",
		"chunked body": "GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
	} {
		if _, got := send(t, s.address, "GET", request); got != plain {
			t.Errorf("with a %s:\n%s, without\n%s", name, got, plain)
		}
	}
}

func TestAwkwardHeaders(t *testing.T) {
	s := start(t, "UTC")
	long := strings.Repeat("a", 8<<10)
	for _, test := range []struct{ sent, want string }{
		{"", ""},
		{`say "hi" \ back`, `say "hi" \ back`},
		{"<script>&amp;</script>", "<script>&amp;</script>"},
		{"latin-1 \xe9, then \xff\xfe", "latin-1 \ufffd, then \ufffd"},
		{"naïve ☕ \u2028", "naïve ☕ \u2028"},
		{"tab\there", "tab\there"},
		{long, long},
		{long + "cut", long},
		{long[1:] + "é", long[1:] + "\ufffd"},
	} {
		headers := "User-Agent: " + test.sent + "\r\n"
		if got := info(t, s.address, headers).Request.UserAgent; got != test.want {
			t.Errorf("%q comes back as %q, want %q", test.sent, got, test.want)
		}
	}
}

func TestPanicIsLoggedAndTheServerGoesOn(t *testing.T) {
	s := start(t, "UTC")
	s.broken.Store(true)
	response, body := get(t, s.address, "GET", "/health", "")
	want := `{"error":"Internal Server Error","message":"The service failed to answer; its log says why.","path":"/health"}` + "\n"
	if response.StatusCode != 500 || body != want {
		t.Errorf("got %d %q, want 500 %q", response.StatusCode, body, want)
	}
	line := lines(t, s.log, "panic", 1)[0]
	stack, _ := line["stack"].(string)
	if line["level"] != "ERROR" || line["error"] != "the clock is broken" || !strings.Contains(stack, "handlers.go:") {
		t.Errorf("the panic was logged as %v", line)
	}
	if line := lines(t, s.log, "request", 1)[0]; line["level"] != "ERROR" || line["status"] != 500.0 {
		t.Errorf("the request was logged as %v", line)
	}

	s.broken.Store(false)
	if response, _ := get(t, s.address, "GET", "/health", ""); response.StatusCode != 200 {
		t.Errorf("after the panic: %d, want 200", response.StatusCode)
	}
}

func TestTimezone(t *testing.T) {
	for _, test := range []struct{ timezone, name, now string }{
		{"Asia/Tokyo", "Asia/Tokyo", "2024-03-01T08:30:00.123+09:00"},
		{"America/St_Johns", "America/St_Johns", "2024-02-29T20:00:00.123-03:30"},
		{"UTC", "UTC", "2024-02-29T23:30:00.123Z"},
		{"", "UTC", "2024-02-29T23:30:00.123Z"}, // the abbreviation
	} {
		s := start(t, test.timezone)
		got := info(t, s.address, "").Runtime
		if got.Timezone != test.name || got.CurrentTime != test.now {
			t.Errorf("TZ %q: %q %q, want %q %q", test.timezone, got.Timezone, got.CurrentTime, test.name, test.now)
		}
		if _, body := get(t, s.address, "GET", "/health", ""); !strings.Contains(body, `"2024-02-29T23:30:00.123Z"`) {
			t.Errorf("TZ %q: /health is not in UTC: %s", test.timezone, body)
		}
	}
}

func TestUptime(t *testing.T) {
	s := start(t, "UTC")
	const minute, hour, day = time.Minute, time.Hour, 24 * time.Hour
	for uptime, want := range map[time.Duration]string{
		0:                             "0 seconds",
		999 * time.Millisecond:        "0 seconds",
		time.Second:                   "1 second",
		42 * time.Second:              "42 seconds",
		minute:                        "1 minute",
		minute + 5*time.Second:        "1 minute, 5 seconds",
		hour - 1:                      "59 minutes, 59 seconds",
		hour + 3*minute + time.Second: "1 hour, 3 minutes",
		hour + 9*time.Second:          "1 hour, 9 seconds",
		2*day + 4*hour + 5*minute:     "2 days, 4 hours",
		day + time.Second:             "1 day, 1 second",
		400 * day:                     "400 days",
	} {
		s.uptime.Store(int64(uptime))
		got := info(t, s.address, "").Runtime
		if got.UptimeHuman != want || got.UptimeSeconds != int64(uptime.Seconds()) {
			t.Errorf("%v: %d, %q, want %d, %q", uptime, got.UptimeSeconds, got.UptimeHuman, int64(uptime.Seconds()), want)
		}
	}
}

func TestClientIP(t *testing.T) {
	handler := newService(slog.New(slog.NewJSONHandler(io.Discard, nil)), io.Discard, time.Now, time.UTC, "UTC", systemInfo{})
	for peer, want := range map[string]string{
		"192.0.2.7:1234":            "192.0.2.7",
		"[2001:db8::1]:1234":        "2001:db8::1",
		"[::ffff:192.0.2.7]:1234":   "192.0.2.7",
		"[fe80::1%eth0]:1234":       "fe80::1",
		"[::1]:65535":               "::1",
		"[2001:db8:0:0:0:0:0:1]:80": "2001:db8::1",
	} {
		request := httptest.NewRequest("GET", "/", nil)
		request.RemoteAddr = peer
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, request)
		var got infoResponse
		if err := json.Unmarshal(recorder.Body.Bytes(), &got); err != nil || got.Request.ClientIP != want {
			t.Errorf("%s: %q (%v), want %q", peer, got.Request.ClientIP, err, want)
		}
	}
}

func TestRequestLog(t *testing.T) {
	s := start(t, "UTC")
	sent := []struct {
		method, target, level string
		status                int
	}{
		{"GET", "/", "INFO", 200},
		{"GET", "/health?probe", "DEBUG", 200},
		{"HEAD", "/", "INFO", 200},
		{"DELETE", "/health", "INFO", 405},
		{"GET", "/nope\u2028%0a{", "INFO", 404},
	}
	for i, request := range sent {
		_, body := get(t, s.address, request.method, request.target, "User-Agent: test/1 \"\xff\r\n")
		line := lines(t, s.log, "request", i+1)[i]
		if duration, isNumber := line["duration_ms"].(float64); !isNumber || duration < 0 || duration > 60_000 {
			t.Errorf("duration_ms is %v", line["duration_ms"])
		}
		logged, err := time.Parse(time.RFC3339Nano, fmt.Sprint(line["time"]))
		if age := time.Since(logged); err != nil || age < 0 || age > time.Minute {
			t.Errorf("time is %v (%v)", line["time"], err)
		}
		path, _, _ := strings.Cut(request.target, "?")
		for key, want := range map[string]any{
			"level": request.level, "method": request.method, "path": strings.ReplaceAll(path, "%0a", "\n"),
			"status": float64(request.status), "bytes": float64(len(body)),
			"client_ip": "127.0.0.1", "user_agent": "test/1 \"\ufffd",
		} {
			if line[key] != want {
				t.Errorf("%s %s: %s is %v, want %v", request.method, request.target, key, line[key], want)
			}
		}
	}
	for _, line := range strings.Split(strings.TrimSpace(s.log.String()), "\n") {
		if !json.Valid([]byte(line)) {
			t.Errorf("not one line of JSON: %q", line)
		}
	}
}

func TestPlatformVersion(t *testing.T) {
	for release, want := range map[string]string{
		"NAME=x\nPRETTY_NAME=\"Alpine Linux v3.19\"\nID=alpine\n": "Alpine Linux v3.19",
		"PRETTY_NAME='Some OS 1'":                                 "Some OS 1",
		"PRETTY_NAME=Plain\r\n":                                   "Plain",
		`PRETTY_NAME="The \"Best\" \$5 OS \\"`:                    `The "Best" $5 OS \`,
		"PRETTY_NAME=\"\"\n":                                      runtime.GOOS,
		"PRETTY_NAME=\"":                                          `"`,
		"OTHER_PRETTY_NAME=x\n\xff\x00":                           runtime.GOOS,
		"":                                                        runtime.GOOS,
	} {
		root := fstest.MapFS{"etc/os-release": {Data: []byte(release)}}
		if got := platformVersion(root); got != want {
			t.Errorf("%q: %q, want %q", release, got, want)
		}
	}
	if got := platformVersion(fstest.MapFS{}); got != runtime.GOOS {
		t.Errorf("no file: %q, want %q", got, runtime.GOOS)
	}
}

// FuzzHandler sends any method, target and headers that net/http lets through to the handler. The
// answer is always JSON and never a 5xx.
func FuzzHandler(f *testing.F) {
	f.Add("GET", "/", "curl/8", "192.0.2.1:1")
	f.Add("HEAD", "/health?x=1", "\xff\"<>\\\u2028", "[::ffff:192.0.2.1]:1")
	f.Add("POST", "/%ff/%00", strings.Repeat("é", 5000), "[fe80::1%eth0]:1")
	f.Add("OPTIONS", "*", "", "@")
	f.Add("CONNECT", "host:1", "\t", "")
	handler := newService(slog.New(slog.NewJSONHandler(io.Discard, nil)), io.Discard, time.Now, time.UTC, "UTC", readSystem(fstest.MapFS{}, limits{}))
	token := regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
	f.Fuzz(func(t *testing.T, method, target, userAgent, peer string) {
		request, err := http.ReadRequest(bufio.NewReader(strings.NewReader(
			method + " " + target + " HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + userAgent + "\r\n\r\n")))
		if err != nil || !token.MatchString(request.Method) {
			return // net/http answers this itself
		}
		request.RemoteAddr = peer
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, request)
		if recorder.Code >= 500 {
			t.Errorf("status %d", recorder.Code)
		}
		if request.Method == http.MethodHead {
			return
		}
		if body := recorder.Body.Bytes(); !json.Valid(body) || bytes.IndexByte(body, '\n') != len(body)-1 {
			t.Errorf("not one line of JSON: %q", body)
		}
	})
}

// discard is a ResponseWriter that costs nothing.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) WriteHeader(int)             {}
func (d discard) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkHandler is one request through the whole handler, its log line included.
func BenchmarkHandler(b *testing.B) {
	handler := newService(slog.New(slog.NewJSONHandler(io.Discard, nil)), io.Discard, time.Now, time.UTC, "UTC", readSystem(os.DirFS("/"), limits{}))
	for _, path := range []string{"/", "/health"} {
		b.Run("path="+path, func(b *testing.B) {
			request := httptest.NewRequest("GET", path, nil)
			request.Header.Set("User-Agent", "curl/8.5.0")
			w := discard{http.Header{}}
			b.ReportAllocs()
			for i := 0; i < b.N; i++ {
				handler.ServeHTTP(w, request)
			}
		})
	}
}
