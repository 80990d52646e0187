package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// dial connects until the test ends.
func dial(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// flood opens n connections at once and gives each to its own goroutine, which ends when the
// connection does. It returns what waits for all of them.
func flood(t testing.TB, address string, n int, attack func(*net.TCPConn)) (wait func()) {
	t.Helper()
	var attackers sync.WaitGroup
	for i := 0; i < n; i++ {
		attackers.Add(1)
		go func() {
			defer attackers.Done()
			conn, err := net.DialTimeout("tcp", address, 20*time.Second)
			if err != nil {
				return // the attacker's loss; what counts is that others get in
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(60 * time.Second)) // the service is to close it long before
			attack(conn.(*net.TCPConn))
		}()
	}
	return attackers.Wait
}

// probe asks for /health on new connections for that long, with -healthcheck's code, from a process
// of its own, which does not share its time with the attackers'. A try that fails is repeated, as
// every health checker does, and the time goes on. It returns the slowest answer.
func probe(t testing.TB, address string, during time.Duration) (slowest time.Duration) {
	t.Helper()
	p := command(t, []string{probeFor + "=" + during.String(), "ADDRESS=" + address})
	if code := p.finish(t); code != 0 {
		t.Fatalf("probe: %s%s", p.stdout, p.stderr)
	}
	var n int
	var slowestText string
	if _, err := fmt.Sscanf(p.stdout.String(), "%d probes, the slowest took %s", &n, &slowestText); err != nil || n == 0 {
		t.Fatalf("probe printed %q: %v", p.stdout, err)
	}
	slowest, err := time.ParseDuration(slowestText)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(strings.TrimSpace(p.stdout.String()))
	return slowest
}

// patience is how long a probe may take: a second, and ten under the race detector, which makes the service
// that much slower.
func patience() time.Duration {
	if info, found := debug.ReadBuildInfo(); found {
		for _, setting := range info.Settings {
			if setting.Key == "-race" && setting.Value == "true" {
				return 10 * time.Second
			}
		}
	}
	return time.Second
}

// With this variable set, to a duration, the test binary is the process that probe starts.
const probeFor = "PROBE_FOR"

// runProbe is that process. It returns its exit code.
func runProbe(during, address string) int {
	duration, err := time.ParseDuration(during)
	if err != nil {
		fmt.Println(err)
		return 2
	}
	host, port, _ := net.SplitHostPort(address)
	number, _ := strconv.ParseUint(port, 10, 16)
	var slowest time.Duration
	n := 0
	var again int
	for end := time.Now().Add(duration); n == 0 || time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		began := time.Now()
		for {
			err := checkHealth(context.Background(), config{host: host, port: uint16(number)})
			if err == nil {
				break
			}
			if time.Since(began) > 5*time.Second {
				fmt.Printf("probe %d failed for %v: %v\n", n, time.Since(began), err)
				return 1
			}
			again++
		}
		slowest = max(slowest, time.Since(began))
		n++
	}
	fmt.Printf("%d probes, the slowest took %v (%d tried again)\n", n, slowest, again)
	return 0
}

// trickle sends a request that never ends, a byte a second.
func trickle(conn *net.TCPConn) {
	for _, b := range []byte("GET / HTTP/1.1\r\nX-Slow: " + strings.Repeat("x", 60)) {
		if _, err := conn.Write([]byte{b}); err != nil {
			return
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := conn.Read(make([]byte, 1)); err != nil && !os.IsTimeout(err) {
			return
		}
	}
}

// hoard asks for as much as the connection takes and reads nothing.
func hoard(conn *net.TCPConn) {
	conn.SetReadBuffer(1)
	requests := bytes.Repeat([]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), 1000)
	for {
		if _, err := conn.Write(requests); err != nil {
			return
		}
	}
}

func TestHealthAnswersWithin1sDuring2000SlowHeaders(t *testing.T) {
	p, address := launch(t)
	before := memory(t, p.Process.Pid, "RssAnon")
	began := time.Now()
	wait := flood(t, address, 2000, trickle)
	if slowest := probe(t, address, 3*time.Second); slowest > patience() {
		t.Errorf("the slowest probe took %v", slowest)
	}
	t.Logf("RssAnon was %d KB and is %d KB", before/1024, memory(t, p.Process.Pid, "RssAnon")/1024)
	wait()
	// A header has readHeaderTimeout, and every attacker began within about a second; readTimeout
	// would close them too, but later.
	if took := time.Since(began); took < readHeaderTimeout || took >= readTimeout {
		t.Errorf("the last connection was closed after %v, want about %v", took, readHeaderTimeout)
	}
}

func TestHealthAnswersWithin1sDuring2000ClientsThatNeverRead(t *testing.T) {
	p, address := launch(t)
	before := memory(t, p.Process.Pid, "RssAnon")
	began := time.Now()
	wait := flood(t, address, 2000, hoard)
	if slowest := probe(t, address, 5*time.Second); slowest > patience() {
		t.Errorf("the slowest probe took %v", slowest)
	}
	t.Logf("RssAnon was %d KB and is %d KB", before/1024, memory(t, p.Process.Pid, "RssAnon")/1024)
	wait()
	if took := time.Since(began); took > 4*writeTimeout { // with few processors, it takes a while until all have asked
		t.Errorf("the last connection was closed after %v, want at most %v", took, 4*writeTimeout)
	}
}

// header is a request's of about that many bytes, in fields as short as can be told apart: what costs
// net/http the most. Without its end, it is not complete.
func header(size int, end bool) []byte {
	text := []byte("GET / HTTP/1.1\r\nHost: localhost\r\n")
	for i := 0; len(text) < size-len("aaa:\n")-len("\r\n"); i++ {
		text = append(text, byte('a'+i%26), byte('a'+i/26%26), byte('a'+i/26/26%26), ':', '\n')
	}
	if end {
		text = append(text, "\r\n"...)
	}
	return text
}

// halves returns an attack: half a request, and then silence.
func halves(half []byte) func(*net.TCPConn) {
	return func(conn *net.TCPConn) {
		conn.Write(half)
		conn.Read(make([]byte, 1))
	}
}

// Bounded by the number of connections alone, 16 KiB of short fields come to 40 times the memory at the start.
func Test2000HalfRequestsCostUnderTenTimesTheMemoryAtTheStart(t *testing.T) {
	for name, half := range map[string][]byte{
		"512 bytes of short fields": header(smallRequest, false),
		"4 KiB of short fields":     header(4<<10, false),
		"16 KiB of short fields":    header(maxHeaderBytes, false),
		"16 KiB, one field":         append(header(0, false), "X: "+strings.Repeat("x", maxHeaderBytes-100)...),
	} {
		p, address := launch(t)
		before := memory(t, p.Process.Pid, "VmHWM")
		wait := flood(t, address, 2000, halves(half))
		if slowest := probe(t, address, 2*time.Second); slowest > patience() {
			t.Errorf("%s: the slowest probe took %v", name, slowest)
		}
		after := memory(t, p.Process.Pid, "VmHWM")
		t.Logf("%s: resident were %d KB and at most %d KB", name, before/1024, after/1024)
		if after > 10*before {
			t.Errorf("%s: memory grew to %d KB", name, after/1024)
		}
		p.Process.Kill()
		wait()
	}
}

// memory is what a line of a process's /proc/…/status says, in bytes: RssAnon is what it has to itself,
// VmHWM the most that was ever resident.
func memory(t testing.TB, pid int, line string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), line+":")
	kb, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kb * 1024
}

func TestBadInputGetsA4xxOrAClose(t *testing.T) {
	_, address := launch(t)
	const host = "Host: localhost\r\n"
	fields, long := strings.Repeat("a:\n", maxHeaderLines), "X-Long: "+strings.Repeat("x", 8<<10)+"\r\n\r\n"
	for name, test := range map[string]struct {
		sent string
		want []int // 0: closed without an answer
	}{
		"garbage":                      {"\x00\xff\xfe\r\n\r\n", []int{400}},
		"text":                         {"hello there\r\n\r\n", []int{400}},
		"another protocol":             {"SSH-2.0-OpenSSH_9.9\r\n", []int{400}},
		"HTTP/2 preface":               {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{404}},
		"as many lines as may be":      {"GET / HTTP/1.1\r\n" + host + fields[:(maxHeaderLines-2)*3] + long, []int{200}},
		"a line more":                  {"GET / HTTP/1.1\r\n" + host + fields[:(maxHeaderLines-1)*3] + long, []int{400}},
		"no Host":                      {"GET / HTTP/1.1\r\n\r\n", []int{400}},
		"two Hosts":                    {"GET / HTTP/1.1\r\n" + host + host + "\r\n", []int{400}},
		"a header without a colon":     {"GET / HTTP/1.1\r\n" + host + "oops\r\n\r\n", []int{400}},
		"a space before the colon":     {"GET / HTTP/1.1\r\n" + host + "A : b\r\n\r\n", []int{400}},
		"NUL in a header":              {"GET / HTTP/1.1\r\n" + host + "A: \x00\r\n\r\n", []int{400}},
		"a bad escape":                 {"GET /%zz HTTP/1.1\r\n" + host + "\r\n", []int{400}},
		"another version":              {"GET / HTTP/3.0\r\n" + host + "\r\n", []int{400, 505}},
		"a negative length":            {"POST / HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\n", []int{400}},
		"two lengths":                  {"POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n", []int{400}},
		"length and chunks":            {"POST / HTTP/1.1\r\n" + host + "Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", []int{400, 405}},
		"a length that is too long":    {"POST / HTTP/1.1\r\n" + host + "Content-Length: 99\r\n\r\nshort", []int{405}},
		"a length that is too short":   {"POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\n\r\nlonger", []int{405}},
		"a length beyond 64 bits":      {"POST / HTTP/1.1\r\n" + host + "Content-Length: 99999999999999999999\r\n\r\n", []int{400}},
		"a bad chunk":                  {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", []int{405}},
		"an unknown coding":            {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip\r\n\r\n", []int{400, 501}},
		"an unknown expectation":       {"GET / HTTP/1.1\r\n" + host + "Expect: tea\r\n\r\n", []int{417}},
		"half a request, half-closed":  {"GET / HTTP/1.1\r\nHost: lo", []int{400, 0}},
		"nothing, half-closed":         {"", []int{0}},
		"a whole request, half-closed": {"GET / HTTP/1.1\r\n" + host + "\r\n", []int{200}},
	} {
		conn := dial(t, address)
		conn.SetDeadline(time.Now().Add(15 * time.Second))
		io.WriteString(conn, test.sent)
		conn.CloseWrite()
		got := 0
		if response, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
			got = response.StatusCode
			io.Copy(io.Discard, response.Body)
		}
		found := false
		for _, want := range test.want {
			found = found || got == want
		}
		if !found {
			t.Errorf("%s: %d, want one of %v", name, got, test.want)
		}
		if response, _ := get(t, address, "GET", "/health", ""); response.StatusCode != 200 {
			t.Errorf("after %s: /health answers %d", name, response.StatusCode)
		}
	}

	conn := dial(t, address)
	conn.SetDeadline(time.Now().Add(15 * time.Second))
	if err := tls.Client(conn, &tls.Config{ServerName: "localhost"}).Handshake(); err == nil || os.IsTimeout(err) {
		t.Errorf("a TLS hello: %v, want the connection closed", err)
	}
}

// A body is neither waited for before the answer nor kept: 100 MB cost no more than a few MB.
func TestBodiesOf100MBCostUnder4MB(t *testing.T) {
	p, address := launch(t)
	get(t, address, "GET", "/", "")
	before := memory(t, p.Process.Pid, "RssAnon")
	block := bytes.Repeat([]byte("x"), 64<<10)
	chunk := append([]byte("10000\r\n"), append(block, "\r\n"...)...)
	var highest int
	for name, test := range map[string]struct {
		header string
		piece  []byte
	}{
		"Content-Length: 104857600":  {"Content-Length: 104857600", block},
		"chunks without end":         {"Transfer-Encoding: chunked", chunk},
		"Expect: 100-continue":       {"Content-Length: 104857600\r\nExpect: 100-continue", block},
		"a chunk extension, endless": {"Transfer-Encoding: chunked\r\nX: y", append([]byte("1;"), block...)},
	} {
		for i := 0; i < 3; i++ {
			conn := dial(t, address)
			conn.SetDeadline(time.Now().Add(15 * time.Second))
			fmt.Fprintf(conn, "POST /health HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n", test.header)
			if response, _ := receive(t, bufio.NewReader(conn), "POST"); response.StatusCode != 405 {
				t.Errorf("%s: %d, want 405 before the body", name, response.StatusCode)
			}
			sent := 0
			for sent < 100<<20 {
				n, err := conn.Write(test.piece)
				if sent += n; err != nil {
					break
				}
			}
			if sent >= 100<<20 {
				t.Errorf("%s: all of it was taken", name)
			}
			highest = max(highest, memory(t, p.Process.Pid, "RssAnon"))
			conn.Close()
		}
	}
	t.Logf("RssAnon was %d KB and at most %d KB", before/1024, highest/1024)
	if highest-before > 4<<20 {
		t.Errorf("memory grew by %d KB", (highest-before)/1024)
	}
}

func TestAnswerDoesNotWaitForTheBody(t *testing.T) {
	_, address := launch(t)
	for _, header := range []string{"Content-Length: 10", "Transfer-Encoding: chunked", "Content-Length: 10\r\nExpect: 100-continue"} {
		response, _ := get(t, address, "GET", "/health", header+"\r\n")
		if response.StatusCode != 200 || !response.Close || response.ContentLength <= 0 {
			t.Errorf("%s: %d, close %v, %d bytes announced; want 200, Connection: close and a Content-Length",
				header, response.StatusCode, response.Close, response.ContentLength)
		}
	}
}

func TestServesWith64FileDescriptors(t *testing.T) {
	p := command(t, []string{"PORT=0"})
	p.Cmd.Args = []string{"sh", "-c", `ulimit -n 64; exec "$0"`, p.Path}
	p.Path = "/bin/sh"
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Process.Kill(); p.Wait() })
	address, _ := lines(t, p.stdout, "listening", 1)[0]["address"].(string)
	_, port, _ := net.SplitHostPort(address)
	address = net.JoinHostPort("127.0.0.1", port)

	var held []net.Conn
	for i := 0; i < 200; i++ {
		held = append(held, dial(t, address))
	}
	if slowest := probe(t, address, time.Second); slowest > patience() {
		t.Errorf("with the descriptors exhausted, the slowest probe took %v", slowest)
	}
	for _, conn := range held {
		conn.Close()
	}
	if slowest := probe(t, address, time.Second); slowest > patience() {
		t.Errorf("after that, the slowest probe took %v", slowest)
	}
}

// closed reports whether the peer has closed conn, which has nothing to read.
func closed(conn net.Conn) bool {
	conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := conn.Read(make([]byte, 1))
	return err != nil && !os.IsTimeout(err)
}

func TestOldestConnectionMakesRoom(t *testing.T) {
	p, address := launch(t)
	held := make([]net.Conn, maxConnections)
	for i := range held {
		held[i] = dial(t, address)
		if i == 0 { // a request that was answered is no protection
			io.WriteString(held[0], "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
			if response, _ := receive(t, bufio.NewReader(held[0]), "GET"); response.Close {
				t.Error("the only connection is not kept")
			}
		}
	}
	if closed(held[0]) {
		t.Fatalf("closed with %d connections", maxConnections)
	}
	if response, _ := get(t, address, "GET", "/health", ""); !response.Close {
		t.Error("with all places taken, a connection is kept")
	}
	waitFor(t, "the oldest to be closed", func() bool { return closed(held[0]) })
	for i, conn := range held[1:] {
		if closed(conn) {
			t.Errorf("connection %d was closed too", i+1)
		}
	}
	lines(t, p.stdout, "connections are exhausted; closing the oldest for the newest", 1)
}

func TestRequestBeingAnsweredIsNotCut(t *testing.T) {
	listener, _ := occupied(t)
	address := listener.Addr().String()
	entered, release := make(chan bool), make(chan bool)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			entered <- true
			<-release
		}
		io.WriteString(w, "done")
	})}
	limiter := limit(listener.(*net.TCPListener), 2, slog.New(slog.NewJSONHandler(io.Discard, nil)))
	limiter.attach(server)
	go server.Serve(limiter)
	defer server.Close()

	slow := dial(t, address) // the oldest of all
	io.WriteString(slow, "GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
	<-entered
	waiting := dial(t, address)
	io.WriteString(waiting, "GET / HTTP/1.1\r\nHost: lo") // a header being read is not yet a request
	if _, body := get(t, address, "GET", "/", ""); body != "done" {
		t.Errorf("the newest got %q", body)
	}
	waitFor(t, "the unfinished header to be closed", func() bool { return closed(waiting) })
	release <- true
	slow.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, body := receive(t, bufio.NewReader(slow), "GET"); body != "done" {
		t.Errorf("the request that was being answered got %q", body)
	}
}

// request is one of that many bytes.
func request(size int) string {
	const begin, end = "GET /health HTTP/1.1\r\nHost: localhost\r\nCookie: ", "\r\n\r\n"
	return begin + strings.Repeat("c", size-len(begin+end)) + end
}

func TestLargeRequestsDoNotWaitForSlowOnes(t *testing.T) {
	p, address := launch(t)
	ask := func(conn net.Conn, size int) {
		t.Helper()
		io.WriteString(conn, request(size))
		conn.SetReadDeadline(time.Now().Add(readHeaderTimeout / 2))
		if response, _ := receive(t, bufio.NewReader(conn), "GET"); response.StatusCode != 200 {
			t.Errorf("a request of %d bytes got %d", size, response.StatusCode)
		}
	}
	var kept []net.Conn
	for i := 0; i < 3*maxLargeRequests; i++ { // each place is given back
		ask(dial(t, address), 10_000)
		kept = append(kept, dial(t, address))
		for j := 0; j < maxHeaderLines/2; j++ {
			ask(kept[i], 10_000)
		}
		conn := dial(t, address)
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nCookie: %01000d\r\n\r\n", 0)
		receive(t, bufio.NewReader(conn), "POST")
		conn.Close()
	}

	time.Sleep(largeFor) // for the last of them to be noticed
	slow := make([]net.Conn, maxLargeRequests)
	cut := func() (n int) {
		for _, conn := range slow {
			if closed(conn) {
				n++
			}
		}
		return n
	}
	for i := range slow {
		slow[i] = dial(t, address)
		io.WriteString(slow[i], "GET / HTTP/1.1\r\nHost: localhost\r\nCookie: "+strings.Repeat("c", 2*smallRequest))
	}
	time.Sleep(2 * largeFor) // for them to have their places
	small := dial(t, address)
	for i := 0; i < 500; i++ {
		ask(small, smallRequest) // just small enough to need none
	}
	time.Sleep(2 * largeFor)
	if n := cut(); n > 0 {
		t.Errorf("a small request cut %d of the slow ones", n)
	}
	ask(small, smallRequest+1)
	waitFor(t, "the slow ones to be closed", func() bool { return cut() == len(slow) })
	lines(t, p.stdout, "large requests wait; closing those that come in slowly", 1)
	for _, conn := range kept {
		if closed(conn) {
			t.Error("an idle connection was closed too")
		}
	}
}

// net/http reads one byte while a request is answered, to notice that the peer has gone. It may do so before
// the limiter knows of the answer, and of a request that was just small enough.
func TestWatchForThePeersEndNeedsNoPlace(t *testing.T) {
	listener, _ := occupied(t)
	server := &http.Server{}
	limiter := limit(listener.(*net.TCPListener), 2, slog.New(slog.NewJSONHandler(io.Discard, nil)))
	limiter.attach(server)
	server.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(10 * time.Millisecond) })
	go server.Serve(limiter)
	defer server.Close()
	for i := 0; i < maxLargeRequests; i++ {
		limiter.largeSlots <- struct{}{}
	}
	conn := dial(t, listener.Addr().String())
	conn.SetDeadline(time.Now().Add(readHeaderTimeout / 2))
	for i := 0; i < 2; i++ {
		io.WriteString(conn, request(smallRequest))
		receive(t, bufio.NewReader(conn), "GET")
	}
}
