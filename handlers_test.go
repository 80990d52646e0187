package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"devops-info-service/internal/platform"
	"devops-info-service/internal/server"
	"devops-info-service/test/harness"
)

// testServer is the service on a real socket of this process, with a clock that the test sets.
type testServer struct {
	address string
	log     *harness.Buffer
	uptime  atomic.Int64 // what the clock has advanced since the start, in nanoseconds
}

var startTime = time.Date(2024, 2, 29, 23, 30, 0, 123456789, time.UTC)

// newTestService returns the service with the endpoints that main.go gives it.
func newTestService(log io.Writer, now func() time.Time, system systemInfo) *service {
	logger := slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	svc := &service{log: logger, version: version, now: now, start: now(), system: system}
	svc.handle("/", "Service information", svc.info)
	svc.handle("/health", "Health check", svc.health)
	return svc
}

// startServer serves until the test ends and then expects a clean stop.
func startServer(t testing.TB, timezone string) *testServer {
	t.Helper()
	location, err := time.LoadLocation(timezone)
	if err != nil {
		t.Fatal(err)
	}
	listener := harness.Listen(t)
	s := &testServer{address: listener.Addr().String(), log: &harness.Buffer{}}
	clock := func() time.Time {
		return startTime.Add(time.Duration(s.uptime.Load())).In(location)
	}
	svc := newTestService(s.log, clock, newSystemInfo(os.DirFS("/"), platform.Limits{}))
	signals := make(chan os.Signal)
	stopped := make(chan error)
	go func() {
		stopped <- server.Server{
			Handler:         svc,
			Log:             svc.log,
			MaxConnections:  100,
			Draining:        &svc.draining,
			ShutdownTimeout: 5 * time.Second,
		}.Run(listener, signals)
	}()
	t.Cleanup(func() {
		signals <- os.Interrupt
		if err := <-stopped; err != nil {
			t.Errorf("Run returned %v; log:\n%s", err, s.log)
		}
	})
	return s
}

// info requests / and decodes the response.
func (s *testServer) info(t testing.TB, headers string) infoResponse {
	t.Helper()
	_, body := harness.Request(t, s.address, "GET", "/", headers)
	var decoded infoResponse
	if err := json.Unmarshal([]byte(body), &decoded); err != nil {
		t.Fatalf("%v in %q", err, body)
	}
	return decoded
}

func TestPathsAndMethods(t *testing.T) {
	t.Parallel()
	s := startServer(t, "UTC")
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
	type testCase struct {
		method, target string
		status         int
		body           string
	}
	tests := []testCase{
		{"GET", "/", 200, anything},
		{"GET", "/health", 200, healthy},
		{"GET", "/health?verbose=1&x=%00", 200, healthy},
		{"GET", "/%68ealth", 200, healthy}, // equivalent by RFC 3986, section 6.2.2.2
		{"GET", "http://localhost/health", 200, healthy},
		{"GET", "http://localhost", 200, anything},
		{"GET", "/nope", 404, notFound("/nope")},
		{"GET", "/health/", 404, notFound("/health/")},
		{"GET", "//health", 404, notFound("//health")},
		{"GET", "/./health", 404, notFound("/./health")},
		{"GET", "/x/../health", 404, notFound("/x/../health")},
		{"GET", "/Health", 404, notFound("/Health")},
		{"GET", "/%3Cb%3E&", 404, notFound("/<b>&")}, // not escaped, because that would be six bytes for one
		{"GET", "/%ff", 404, notFound("/\ufffd")},
		{"POST", "/nope", 404, notFound("/nope")},
		{"GET", "/" + strings.Repeat("x", maxRepeated), 404, notFound("/" + strings.Repeat("x", maxRepeated-1))},
		{"OPTIONS", "*", 404, notFound("*")},
		{"CONNECT", "localhost:80", 404, notFound("")},
		{"PRI", "*", 404, notFound("*")},
	}
	for _, path := range []string{"/", "/health"} {
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "BREW"} {
			tests = append(tests, testCase{method, path, 405, notAllowed(method, path)})
		}
	}
	for _, test := range tests {
		t.Run(test.method+" "+test.target, func(t *testing.T) {
			response, body := harness.Request(t, s.address, test.method, test.target, "")
			if response.StatusCode != test.status {
				t.Errorf("got status %d, want %d", response.StatusCode, test.status)
			}
			want := http.Header{
				"Content-Type":   {"application/json"},
				"Cache-Control":  {"no-store"},
				"Content-Length": {strconv.Itoa(len(body))},
				"Date":           response.Header["Date"],
			}
			if test.status == http.StatusMethodNotAllowed {
				want.Set("Allow", "GET, HEAD")
			}
			if !reflect.DeepEqual(response.Header, want) {
				t.Errorf("got the headers %v, want %v", response.Header, want)
			}
			// Newer Go closes the connection after every response to CONNECT.
			if response.Close && test.method != "CONNECT" {
				t.Error("got Connection: close, want the connection kept")
			}
			if test.body != anything && body != test.body {
				t.Errorf("got the body\n%q, want\n%q", body, test.body)
			}
		})
	}
}

func TestHeadHasTheHeadersOfGet(t *testing.T) {
	t.Parallel()
	s := startServer(t, "UTC")
	// It makes the response to / so long that net/http would send it in chunks, without its length.
	agent := strings.Repeat(`"`, maxRepeated)
	for _, path := range []string{"/", "/health", "/nope"} {
		t.Run(path, func(t *testing.T) {
			conn := harness.Dial(t, s.address) // the same for both, so that a body after HEAD would show
			reader := bufio.NewReader(conn)
			request := " " + path + " HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + agent + "\r\n\r\n"
			harness.Write(t, conn, "HEAD"+request)
			head, _ := harness.Receive(t, reader, "HEAD")
			harness.Write(t, conn, "GET"+request)
			get, body := harness.Receive(t, reader, "GET")
			head.Header.Set("Date", get.Header.Get("Date")) // which may be a second later
			if head.StatusCode != get.StatusCode || !reflect.DeepEqual(head.Header, get.Header) {
				t.Errorf("HEAD got %d %v, GET got %d %v", head.StatusCode, head.Header, get.StatusCode, get.Header)
			}
			if head.ContentLength != int64(len(body)) {
				t.Errorf("HEAD got Content-Length %d, GET got %d bytes", head.ContentLength, len(body))
			}
		})
	}
}

func TestInfoDescribesServiceSystemAndRequest(t *testing.T) {
	t.Parallel()
	s := startServer(t, "UTC")
	_, got := harness.Request(t, s.address, "GET", "/?a=1;b&path=/x", "User-Agent: test/1\r\n"+
		"X-Forwarded-For: 203.0.113.9\r\nX-Real-IP: 203.0.113.9\r\nForwarded: for=203.0.113.9\r\n")
	hostname, _ := os.Hostname()
	want := fmt.Sprintf(`{"service":{"name":"devops-info-service","version":"1.0.0",`+
		`"description":"DevOps course info service","framework":"Go net/http"},`+
		`"system":{"hostname":%q,"platform":%q,"platform_version":%q,"architecture":%q,"cpu_count":%d,`+
		`"go_version":%q,"cpu_limit":null,"memory_limit_bytes":null},`+
		`"runtime":{"uptime_seconds":0,"uptime_human":"0 seconds",`+
		`"current_time":"2024-02-29T23:30:00.123Z","timezone":"UTC"},`+
		`"request":{"client_ip":"127.0.0.1","user_agent":"test/1","method":"GET","path":"/"},"endpoints":[`,
		hostname, runtime.GOOS, platform.Version(os.DirFS("/")), runtime.GOARCH, runtime.NumCPU(), runtime.Version())
	if !strings.HasPrefix(got, want) {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

func TestInfoTellsTheContainersLimits(t *testing.T) {
	t.Parallel()
	cpus, memory := 0.5, int64(64<<20)
	svc := newTestService(io.Discard, time.Now, systemInfo{CPULimit: &cpus, MemoryLimit: &memory})
	recorder := httptest.NewRecorder()
	svc.ServeHTTP(recorder, httptest.NewRequest("GET", "/", nil))
	if want := `"cpu_limit":0.5,"memory_limit_bytes":67108864}`; !strings.Contains(recorder.Body.String(), want) {
		t.Errorf("got %s, want %s", recorder.Body, want)
	}
}

func TestBodyIsNeitherReadNorAwaited(t *testing.T) {
	t.Parallel()
	s := startServer(t, "UTC")
	_, want := harness.Get(t, s.address, "/")
	for name, rest := range map[string]string{
		"whole":                  "Content-Length: 12\r\n\r\n{\"path\":\"x\"}",
		"whole, in chunks":       "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"missing":                "Content-Length: 10\r\n\r\n",
		"missing, in chunks":     "Transfer-Encoding: chunked\r\n\r\n",
		"missing, not asked for": "Content-Length: 10\r\nExpect: 100-continue\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			response, got := harness.Send(t, s.address, "GET", "GET / HTTP/1.1\r\nHost: localhost\r\n"+rest)
			if response.StatusCode != 200 || got != want {
				t.Errorf("got %d\n%s, want 200\n%s", response.StatusCode, got, want)
			}
			if !response.Close || response.ContentLength != int64(len(want)) {
				t.Errorf("got close %v and Content-Length %d, want Connection: close and the length",
					response.Close, response.ContentLength)
			}
		})
	}
}

func TestUserAgentIsRepeatedAsValidUTF8(t *testing.T) {
	t.Parallel()
	s := startServer(t, "UTC")
	long := strings.Repeat("a", maxRepeated)
	for name, test := range map[string]struct{ sent, want string }{
		"empty":                     {"", ""},
		"quotes, tab, markup":       {"say \"hi\" \\\t<b>&amp;", "say \"hi\" \\\t<b>&amp;"},
		"latin-1":                   {"latin-1 \xe9, then \xff\xfe", "latin-1 \ufffd, then \ufffd"},
		"UTF-8":                     {"naïve ☕ \u2028", "naïve ☕ \u2028"},
		"1 KiB":                     {long, long},
		"more than 1 KiB":           {long + "cut", long},
		"1 KiB end inside a letter": {long[1:] + "é", long[1:] + "\ufffd"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := s.info(t, "User-Agent: "+test.sent+"\r\n").Request.UserAgent; got != test.want {
				t.Errorf("sent %q, got %q, want %q", test.sent, got, test.want)
			}
		})
	}
}

func TestPanicIsLoggedAndTheServiceGoesOn(t *testing.T) {
	t.Parallel()
	logged := &harness.Buffer{}
	var elapsed atomic.Int64 // nanoseconds
	clock := func() time.Time { return startTime.Add(time.Duration(elapsed.Load())) }
	svc := newTestService(logged, clock, systemInfo{})
	svc.handle("/broken", "Panics", func(*http.Request, time.Time) (int, any) {
		elapsed.Store(int64(12_345 * time.Microsecond))
		panic("it is broken")
	})
	svc.handle("/abort", "Ends the connection", func(*http.Request, time.Time) (int, any) { panic(http.ErrAbortHandler) })
	server := httptest.NewServer(svc)
	t.Cleanup(server.Close)
	address := server.Listener.Addr().String()

	conn := harness.Dial(t, address)
	harness.Write(t, conn, "GET /abort HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF || logged.String() != "" {
		t.Errorf("a handler that aborts: got %d bytes, %v and the log %q, want the connection closed and no log", n, err, logged)
	}
	response, body := harness.Get(t, address, "/broken")
	want := `{"error":"Internal Server Error","message":"The service failed to answer; its log says why.","path":"/broken"}` + "\n"
	if response.StatusCode != 500 || body != want {
		t.Errorf("got %d %q, want 500 %q", response.StatusCode, body, want)
	}
	line := harness.WaitForLog(t, logged, "panic", 1)[0]
	stack, _ := line["stack"].(string)
	if line["level"] != "ERROR" || line["error"] != "it is broken" || !strings.Contains(stack, "handlers_test.go:") {
		t.Errorf("the panic was logged as %v", line)
	}
	if line := harness.WaitForLog(t, logged, "request", 1)[0]; line["level"] != "ERROR" || line["status"] != 500.0 || line["duration_ms"] != 12.345 {
		t.Errorf("the request was logged as %v", line)
	}

	if response, _ := harness.Get(t, address, "/health"); response.StatusCode != 200 {
		t.Errorf("after the panic: got %d, want 200", response.StatusCode)
	}
}

func TestTimesAreInTheConfiguredZone(t *testing.T) {
	t.Parallel()
	local := startTime.In(time.Local)
	abbreviation, _ := local.Zone()
	for _, test := range []struct{ timezone, name, now string }{
		{"Asia/Tokyo", "Asia/Tokyo", "2024-03-01T08:30:00.123+09:00"},
		{"America/St_Johns", "America/St_Johns", "2024-02-29T20:00:00.123-03:30"},
		{"Local", abbreviation, local.Format("2006-01-02T15:04:05.000Z07:00")},
	} {
		t.Run("TZ="+test.timezone, func(t *testing.T) {
			s := startServer(t, test.timezone)
			got := s.info(t, "").Runtime
			if got.Timezone != test.name || got.CurrentTime != test.now {
				t.Errorf("got %q %q, want %q %q", got.Timezone, got.CurrentTime, test.name, test.now)
			}
			if _, body := harness.Get(t, s.address, "/health"); !strings.Contains(body, `"2024-02-29T23:30:00.123Z"`) {
				t.Errorf("got %s from /health, want its time in UTC", body)
			}
		})
	}
}

func TestUptime(t *testing.T) {
	t.Parallel()
	s := startServer(t, "UTC")
	const minute, hour, day = time.Minute, time.Hour, 24 * time.Hour
	for uptime, want := range map[time.Duration]string{
		999 * time.Millisecond:        "0 seconds",
		time.Second:                   "1 second",
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
		got := s.info(t, "").Runtime
		if got.UptimeHuman != want || got.UptimeSeconds != int64(uptime.Seconds()) {
			t.Errorf("after %v: got %d, %q, want %q", uptime, got.UptimeSeconds, got.UptimeHuman, want)
		}
	}
}

func TestClientIP(t *testing.T) {
	t.Parallel()
	svc := newTestService(io.Discard, time.Now, systemInfo{})
	for remote, want := range map[string]string{
		"192.0.2.7:1234":            "192.0.2.7",
		"[2001:db8::1]:1234":        "2001:db8::1",
		"[::ffff:192.0.2.7]:1234":   "192.0.2.7",
		"[fe80::1%eth0]:1234":       "fe80::1",
		"[2001:db8:0:0:0:0:0:1]:80": "2001:db8::1",
		"@":                         "@", // not an address; the peer of a Unix socket
	} {
		request := httptest.NewRequest("GET", "/", nil)
		request.RemoteAddr = remote
		recorder := httptest.NewRecorder()
		svc.ServeHTTP(recorder, request)
		if body := recorder.Body.String(); !strings.Contains(body, `"client_ip":"`+want+`"`) {
			t.Errorf("%s: got %s, want the client_ip %s", remote, body, want)
		}
	}
}

func TestEachRequestIsLogged(t *testing.T) {
	t.Parallel()
	s := startServer(t, "UTC")
	long := strings.Repeat("x", maxRepeated)
	for i, request := range []struct {
		method, target, path, level string
		status                      int
	}{
		{"GET", "/", "/", "INFO", 200},
		{"GET", "/health?probe", "/health", "DEBUG", 200},
		{"HEAD", "/", "/", "INFO", 200},
		{"DELETE", "/health", "/health", "INFO", 405},
		{"GET", "/nope\u2028%0a{", "/nope\u2028\n{", "INFO", 404},
		{"GET", "/" + long, "/" + long[1:], "INFO", 404},
	} {
		_, body := harness.Request(t, s.address, request.method, request.target, "User-Agent: \"\xff"+long+"\r\n")
		line := harness.WaitForLog(t, s.log, "request", i+1)[i]
		for key, want := range map[string]any{
			"level": request.level, "duration_ms": 0.0,
			"method": request.method, "path": request.path,
			"status": float64(request.status), "bytes": float64(len(body)),
			"client_ip": "127.0.0.1", "user_agent": "\"\ufffd" + long[2:],
		} {
			if line[key] != want {
				t.Errorf("%s %s: got %s %v, want %v", request.method, request.target, key, line[key], want)
			}
		}
	}
}

func TestRunServesBothEndpointsUntilItIsToldToStop(t *testing.T) {
	signals := make(chan os.Signal)
	stdout := &harness.Buffer{}
	code := make(chan int)
	go func() {
		getenv := func(name string) string { return map[string]string{"PORT": "0"}[name] }
		code <- run(nil, getenv, stdout, io.Discard, signals)
	}()
	address := "127.0.0.1:" + harness.WaitForPort(t, stdout)
	_, body := harness.Get(t, address, "/")
	// More endpoints may follow.
	want := `"endpoints":[{"path":"/","method":"GET","description":"Service information"},` +
		`{"path":"/health","method":"GET","description":"Health check"}`
	if !strings.Contains(body, want) {
		t.Errorf("got %s, want %s", body, want)
	}
	if _, body := harness.Get(t, address, "/health"); !strings.HasPrefix(body, `{"status":"healthy"`) {
		t.Errorf("got %s from /health, want it healthy", body)
	}
	signals <- os.Interrupt
	if got := <-code; got != exitOK {
		t.Errorf("got exit code %d, want %d; log:\n%s", got, exitOK, stdout)
	}
	if line := harness.WaitForLog(t, stdout, "draining", 1)[0]; line["reason"] != "interrupt" {
		t.Errorf("got the reason %v", line["reason"])
	}
}

func TestVersionIsTheDefaultOfBothDockerfiles(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"Dockerfile", "Dockerfile.single"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if want := "\nARG VERSION=" + version + "\n"; !strings.Contains(string(text), want) {
			t.Errorf("%s lacks %q", file, want)
		}
	}
}

// FuzzHandler sends any method, target and headers that net/http lets through to the handler. The
// response is always JSON and never a 5xx.
func FuzzHandler(f *testing.F) {
	for _, seed := range [][4]string{
		{"GET", "/", "curl/8", "192.0.2.1:1"},
		{"GET", "/?x=1", "\xff\"<>\\\u2028", "[::ffff:192.0.2.1]:1"},
		{"GET", "http://localhost", "\t", "\xff\x7f\x00\x00.0.2.1:1"},
		{"HEAD", "/health", "", "0.0.0:0"},
		{"POST", "/%ff/%00%08", strings.Repeat("é", 5000), "[fe80::1%eth0]:1"},
		{"BREW", "/health", "", "[0.0.0.0]:0"},
		{"OPTIONS", "*", "", "@"},
		{"CONNECT", "host:1", "", ""},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3])
	}
	svc := newTestService(io.Discard, time.Now, newSystemInfo(fstest.MapFS{}, platform.Limits{}))
	f.Fuzz(func(t *testing.T, method, target, userAgent, remote string) {
		request, err := http.ReadRequest(bufio.NewReader(strings.NewReader(
			method + " " + target + " HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + userAgent + "\r\n\r\n")))
		if err != nil {
			return // net/http answers this itself
		}
		request.RemoteAddr = remote
		recorder := httptest.NewRecorder()
		svc.ServeHTTP(recorder, request)
		if recorder.Code >= 500 {
			t.Errorf("got status %d", recorder.Code)
		}
		if request.Method == http.MethodHead {
			return
		}
		if body := recorder.Body.Bytes(); !json.Valid(body) || bytes.IndexByte(body, '\n') != len(body)-1 {
			t.Errorf("got a body that is not one line of JSON: %q", body)
		}
	})
}

// BenchmarkHandler is one request through the whole handler, its log line included.
func BenchmarkHandler(b *testing.B) {
	svc := newTestService(io.Discard, time.Now, newSystemInfo(os.DirFS("/"), platform.Limits{}))
	for _, path := range []string{"/", "/health"} {
		b.Run("path="+path, func(b *testing.B) {
			request := httptest.NewRequest("GET", path, nil)
			request.Header.Set("User-Agent", "curl/8.5.0")
			w := &httptest.ResponseRecorder{} // without a Body, because that would grow
			b.ReportAllocs()
			for i := 0; i < b.N; i++ {
				svc.ServeHTTP(w, request)
			}
		})
	}
}
