package main

import (
	"archive/zip"
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The test binary is also the program: with this variable set it runs main. So the tests see the
// real process: its arguments, environment, exit code, output and signals.
const runMain = "RUN_MAIN_FOR_TEST"

func TestMain(m *testing.M) {
	if during := os.Getenv(probeFor); during != "" {
		os.Exit(runProbe(during, os.Getenv("ADDRESS")))
	}
	if os.Getenv(runMain) != "" {
		main()
	}
	os.Exit(m.Run())
}

// process is the program, running. It writes to files, so that no test slows it down by reading.
type process struct {
	*exec.Cmd
	stdout, stderr outputFile
}

// outputFile is the path of a file that prints as what it holds.
type outputFile string

func (f outputFile) String() string {
	text, _ := os.ReadFile(string(f))
	return string(text)
}

// command prepares the program with only these environment variables.
func command(t testing.TB, environment []string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append([]string{runMain + "=1"}, environment...)
	folder := t.TempDir()
	create := func(name string) (*os.File, outputFile) {
		file, err := os.Create(filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		return file, outputFile(file.Name())
	}
	p := &process{Cmd: cmd}
	cmd.Stdout, p.stdout = create("stdout")
	cmd.Stderr, p.stderr = create("stderr")
	return p
}

// finish runs the program to its end and returns its exit code.
func (p *process) finish(t testing.TB) int {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p.wait(t)
}

// wait returns the exit code of a program that is about to end.
func (p *process) wait(t testing.TB) int {
	t.Helper()
	kill := time.AfterFunc(20*time.Second, func() { p.Process.Kill() })
	defer kill.Stop()
	p.Wait()
	return p.ProcessState.ExitCode()
}

// launch starts the service on a free port and returns it with its address on this machine.
func launch(t testing.TB, environment ...string) (*process, string) {
	t.Helper()
	p := command(t, append([]string{"PORT=0"}, environment...))
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Process.Kill(); p.Wait() })
	address, _ := lines(t, p.stdout, "listening", 1)[0]["address"].(string)
	_, port, err := net.SplitHostPort(address)
	if err != nil || port == "0" {
		t.Fatalf("the start line names the address %q", address)
	}
	return p, net.JoinHostPort("127.0.0.1", port)
}

// occupied returns a listener of the test's own, and its port.
func occupied(t testing.TB) (net.Listener, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return listener, port
}

func TestBadEnvironmentStopsTheStart(t *testing.T) {
	for setting, want := range map[string]string{
		"PORT=80a":              `PORT "80a": must be 0 to 65535`,
		"PORT=70000":            `PORT "70000": must be 0 to 65535`,
		"PORT=-1":               `PORT "-1": must be 0 to 65535`,
		"PORT=+80":              `PORT "+80": must be 0 to 65535`,
		"PORT= 80":              `PORT " 80": must be 0 to 65535`,
		"DEBUG=maybe":           `DEBUG "maybe": must be true or false (or 1, 0, t, f)`,
		"TZ=Mars/Olympus":       `TZ "Mars/Olympus": must be a name from the tz database, such as UTC or Asia/Tokyo`,
		"TZ=Local":              `TZ "Local": must be a name from the tz database, such as UTC or Asia/Tokyo`,
		"TZ=../../etc/passwd":   `TZ "../../etc/passwd": must be a name from the tz database, such as UTC or Asia/Tokyo`,
		"TZ=evil\nline":         `TZ "evil\nline": must be a name from the tz database, such as UTC or Asia/Tokyo`,
		"GOMAXPROCS=many":       `GOMAXPROCS "many": must be a whole number, 1 or more`,
		"GOMAXPROCS=0":          `GOMAXPROCS "0": must be a whole number, 1 or more`,
		"SHUTDOWN_DELAY=-1s":    `SHUTDOWN_DELAY "-1s": must be a duration of 0s or more, such as 500ms or 3s`,
		"SHUTDOWN_DELAY=5":      `SHUTDOWN_DELAY "5": must be a duration of 0s or more, such as 500ms or 3s`,
		"SHUTDOWN_TIMEOUT=soon": `SHUTDOWN_TIMEOUT "soon": must be a duration of 0s or more, such as 500ms or 3s`,
		"HOST=[::1]":            `HOST "[::1]": must be an IP address (no brackets, no port) or a host name`,
		"HOST=localhost:80":     `HOST "localhost:80": must be an IP address (no brackets, no port) or a host name`,
		"HOST=a\nb":             `HOST "a\nb": must be an IP address (no brackets, no port) or a host name`,
		"HOST=http://localhost": `HOST "http://localhost": must be an IP address (no brackets, no port) or a host name`,
	} {
		p := command(t, []string{setting})
		code := p.finish(t)
		if got := p.stderr.String(); code != 2 || got != "devops-info-service: "+want+"\n" || p.stdout.String() != "" {
			t.Errorf("%s: exit %d, stdout %q, stderr %q, want exit 2, %q", setting, code, p.stdout, got, want)
		}
	}
}

func TestFlags(t *testing.T) {
	platform := runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
	for _, test := range []struct {
		args           string
		code           int
		stdout, stderr string // how each begins; none where empty
	}{
		{"-h", 0, "Usage: devops-info-service [flag]\n", ""},
		{"--help", 0, "Usage: devops-info-service [flag]\n", ""},
		{"-version", 0, "devops-info-service 1.0.0 " + platform + "\n", ""},
		{"-port 80", 2, "", "devops-info-service: flag provided but not defined: -port\n\nUsage: "},
		{"-version=perhaps", 2, "", "devops-info-service: invalid boolean value \"perhaps\" for -version: "},
		{"serve", 2, "", "devops-info-service: argument \"serve\": no arguments are accepted\n\nUsage: "},
		{"-healthcheck now", 2, "", "devops-info-service: argument \"now\": no arguments are accepted\n\nUsage: "},
	} {
		p := command(t, nil, strings.Fields(test.args)...)
		code := p.finish(t)
		if code != test.code {
			t.Errorf("%s: exit %d, want %d", test.args, code, test.code)
		}
		for name, output := range map[string][2]string{
			"stdout": {p.stdout.String(), test.stdout},
			"stderr": {p.stderr.String(), test.stderr},
		} {
			if !strings.HasPrefix(output[0], output[1]) || (output[1] == "" && output[0] != "") {
				t.Errorf("%s: %s is %q, want %q", test.args, name, output[0], output[1])
			}
		}
	}
}

func TestHelpNamesEveryVariable(t *testing.T) {
	p := command(t, nil, "-h")
	p.finish(t)
	read := map[string]bool{}
	if _, err := readConfig(func(name string) string { read[name] = true; return "" }); err != nil {
		t.Fatal(err)
	}
	for name := range read {
		if !strings.Contains(p.stdout.String(), "\n  "+name+" ") {
			t.Errorf("-h does not name %s", name)
		}
	}
}

func TestVersionIsTheImagesDefault(t *testing.T) {
	for _, file := range []string{"Dockerfile", "Dockerfile.single"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "\nARG VERSION="+version+"\n") {
			t.Errorf("%s does not have the default version %s", file, version)
		}
	}
}

func TestEmptyVariablesMeanTheDefault(t *testing.T) {
	cfg, err := readConfig(func(string) string { return "" })
	if err != nil || cfg.address() != ":5002" || cfg.debug || cfg.location != time.Local || cfg.timezone != "" ||
		cfg.shutdownDelay != 0 || cfg.shutdownTimeout != 8*time.Second {
		t.Errorf("the defaults are %+v, %v", cfg, err)
	}
	_, address := launch(t, "HOST=", "DEBUG=", "TZ=")
	_, unset := launch(t)
	if got, want := info(t, address, "").Runtime.Timezone, info(t, unset, "").Runtime.Timezone; got != want {
		t.Errorf("with TZ empty the zone is %q, with TZ unset %q", got, want)
	}
	if _, body := get(t, address, "GET", "/health", ""); !strings.Contains(body, `"healthy"`) {
		t.Errorf("/health answers %q", body)
	}
}

// zoneArchive is the tz database that comes with Go.
func zoneArchive(t testing.TB) *zip.ReadCloser {
	t.Helper()
	archive, err := zip.OpenReader(filepath.Join(runtime.GOROOT(), "lib", "time", "zoneinfo.zip"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { archive.Close() })
	return archive
}

func TestEveryTimeZoneIsAccepted(t *testing.T) {
	zones := 0
	for _, file := range zoneArchive(t).File {
		if strings.HasSuffix(file.Name, "/") {
			continue
		}
		zones++
		cfg, err := readConfig(func(name string) string { return map[string]string{"TZ": file.Name}[name] })
		if err != nil || cfg.location.String() != file.Name {
			t.Errorf("%s: %v, %v", file.Name, cfg.location, err)
		}
	}
	if zones < 400 {
		t.Errorf("only %d zones were tried", zones)
	}
}

func TestListensOnBothFamilies(t *testing.T) {
	_, address := launch(t)
	_, port, _ := net.SplitHostPort(address)
	for _, host := range []string{"127.0.0.1", "::1"} {
		if got := info(t, net.JoinHostPort(host, port), "").Request.ClientIP; got != host {
			t.Errorf("asked from %s, client_ip is %q", host, got)
		}
	}
}

func TestListensOnIPv4Alone(t *testing.T) {
	_, address := launch(t, "HOST=0.0.0.0")
	_, port, _ := net.SplitHostPort(address)
	if !refused(net.JoinHostPort("::1", port)) {
		t.Error("HOST=0.0.0.0 answers on ::1")
	}
	info(t, address, "")
}

func TestPortTaken(t *testing.T) {
	_, port := occupied(t)
	p := command(t, []string{"HOST=127.0.0.1", "PORT=" + port})
	code := p.finish(t)
	want := `devops-info-service: HOST "127.0.0.1", PORT "` + port + `": listen tcp4 127.0.0.1:` + port + ": bind: address already in use\n"
	if code != 1 || p.stderr.String() != want || p.stdout.String() != "" {
		t.Errorf("exit %d, stdout %q, stderr %q, want 1 and %q", code, p.stdout, p.stderr, want)
	}
}

func TestDebugShowsHealthChecks(t *testing.T) {
	for setting, want := range map[string]int{"DEBUG=true": 3, "DEBUG=0": 1} {
		p, address := launch(t, setting)
		get(t, address, "GET", "/health", "")
		get(t, address, "GET", "/health", "")
		get(t, address, "GET", "/", "")
		lines(t, p.stdout, "request", want)
		p.Process.Signal(syscall.SIGTERM)
		p.wait(t)
		if got := len(lines(t, p.stdout, "request", want)); got != want {
			t.Errorf("%s: %d requests logged, want %d", setting, got, want)
		}
	}
}

// half sends half of a request for /, so that it is in flight, and returns what sends the rest.
func half(t testing.TB, address string) (net.Conn, func()) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: local")
	return conn, func() { io.WriteString(conn, "host\r\n\r\n") }
}

// refused reports whether nobody listens at address.
func refused(address string) bool {
	conn, err := net.Dial("tcp", address)
	if err == nil {
		conn.Close()
	}
	return err != nil
}

func TestSignalLetsARequestInFlightFinish(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		p, address := launch(t, "SHUTDOWN_DELAY=500ms") // for the half to have been read
		conn, rest := half(t, address)
		p.Process.Signal(sig)
		waitFor(t, "the listener to close", func() bool { return refused(address) })
		rest()
		response, _ := receive(t, bufio.NewReader(conn), "GET")
		if response.StatusCode != 200 || !response.Close {
			t.Errorf("%v: in flight: %d, close %v, want 200 and Connection: close", sig, response.StatusCode, response.Close)
		}
		if code := p.wait(t); code != 0 {
			t.Errorf("%v: exit %d, want 0; log:\n%s%s", sig, code, p.stdout, p.stderr)
		}
		for _, step := range []string{"draining", "stopping", "stopped"} {
			if n := len(lines(t, p.stdout, step, 1)); n != 1 {
				t.Errorf("%d log lines %q, want 1", n, step)
			}
		}
	}
}

func TestShutdownTimeoutCutsWhatIsLeft(t *testing.T) {
	p, address := launch(t, "SHUTDOWN_DELAY=500ms", "SHUTDOWN_TIMEOUT=200ms")
	conn, _ := half(t, address)
	p.Process.Signal(syscall.SIGTERM)
	if code := p.wait(t); code != 1 {
		t.Errorf("exit %d, want 1", code)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("half a request was answered")
	}
	line := lines(t, p.stdout, "stopped, with requests cut", 1)[0]
	if line["level"] != "ERROR" || line["requests_cut"] != 1.0 || line["reason"] != "the timeout" {
		t.Errorf("logged %v", line)
	}
	// The timeout starts when the delay has passed.
	var at [3]time.Time
	for i, step := range []string{"draining", "stopping", "stopped, with requests cut"} {
		at[i], _ = time.Parse(time.RFC3339Nano, lines(t, p.stdout, step, 1)[0]["time"].(string))
	}
	if delay, timeout := at[1].Sub(at[0]), at[2].Sub(at[1]); delay < 500*time.Millisecond || timeout < 200*time.Millisecond {
		t.Errorf("delay %v, timeout %v, want at least 500ms and 200ms", delay, timeout)
	}
}

func TestDraining(t *testing.T) {
	p, address := launch(t, "SHUTDOWN_DELAY=3s")
	_, port, _ := net.SplitHostPort(address)

	quiet, err := net.Dial("tcp", address) // a keep-alive connection that is idle when the signal comes
	if err != nil {
		t.Fatal(err)
	}
	defer quiet.Close()
	quiet.SetDeadline(time.Now().Add(10 * time.Second))
	reader := bufio.NewReader(quiet)
	io.WriteString(quiet, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if response, _ := receive(t, reader, "GET"); response.Close {
		t.Error("not draining, but Connection: close")
	}

	p.Process.Signal(syscall.SIGTERM)
	lines(t, p.stdout, "draining", 1)
	for path, status := range map[string]int{"/": 200, "/health": 503, "/nope": 404} {
		response, body := get(t, address, "GET", path, "") // on a new connection
		if response.StatusCode != status || !response.Close {
			t.Errorf("draining: %s answers %d, close %v, want %d and Connection: close", path, response.StatusCode, response.Close, status)
		}
		if path == "/health" {
			if got := strings.Join(keys(t, body), " "); got != "status timestamp uptime_seconds" || !strings.Contains(body, `{"status":"draining",`) {
				t.Errorf("draining: /health says %s", body)
			}
		}
	}
	check := command(t, []string{"PORT=" + port}, "-healthcheck")
	if code := check.finish(t); code != 1 || !strings.Contains(check.stderr.String(), "answered 503") {
		t.Errorf("draining: -healthcheck exits %d, %q", code, check.stderr)
	}
	io.WriteString(quiet, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if response, _ := receive(t, reader, "GET"); response.StatusCode != 200 || !response.Close {
		t.Errorf("on the idle connection: %d, close %v, want 200 and Connection: close", response.StatusCode, response.Close)
	}
	if code := p.wait(t); code != 0 {
		t.Errorf("exit %d, want 0; log:\n%s", code, p.stdout)
	}
}

// Clients that ask for /health until they are told 503, as load balancers do, on connections of
// their own and on kept ones, lose no request.
func TestDrainingLosesNoRequest(t *testing.T) {
	p, address := launch(t, "SHUTDOWN_DELAY=1s")
	var answers atomic.Int64
	failures := make(chan error, 8)
	for i := 0; i < cap(failures); i++ {
		go func(keep bool) {
			failures <- func() error {
				client := http.Client{Transport: &http.Transport{DisableKeepAlives: !keep}, Timeout: 10 * time.Second}
				for {
					response, err := client.Get("http://" + address + "/health")
					if err != nil {
						return err
					}
					_, err = io.Copy(io.Discard, response.Body)
					response.Body.Close()
					answers.Add(1)
					switch {
					case err != nil:
						return err
					case response.StatusCode == 503:
						return nil
					case response.StatusCode != 200:
						return fmt.Errorf("status %d", response.StatusCode)
					}
				}
			}()
		}(i%2 == 0)
	}
	waitFor(t, "some answers", func() bool { return answers.Load() > 1000 })
	p.Process.Signal(syscall.SIGTERM)
	for i := 0; i < cap(failures); i++ {
		if err := <-failures; err != nil {
			t.Errorf("a request was lost: %v", err)
		}
	}
	t.Logf("%d requests answered", answers.Load())
	if code := p.wait(t); code != 0 {
		t.Errorf("exit %d, want 0; log:\n%s", code, p.stdout)
	}
}

func TestSignalStopsTheProcess(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		p, address := launch(t)
		get(t, address, "GET", "/", "")
		p.Process.Signal(sig)
		if code := p.wait(t); code != 0 {
			t.Errorf("%v: exit %d, want 0; log:\n%s%s", sig, code, p.stdout, p.stderr)
		}
		lines(t, p.stdout, "stopped", 1)
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	p, _ := launch(t, "SHUTDOWN_DELAY=1h") // with nothing to cut
	p.Process.Signal(syscall.SIGTERM)
	lines(t, p.stdout, "draining", 1)
	p.Process.Signal(os.Interrupt)
	if code := p.wait(t); code != 0 {
		t.Errorf("draining, idle: exit %d, want 0", code)
	}

	p, address := launch(t, "SHUTDOWN_DELAY=500ms", "SHUTDOWN_TIMEOUT=1h")
	half(t, address)
	p.Process.Signal(syscall.SIGTERM)
	lines(t, p.stdout, "stopping", 1)
	p.Process.Signal(os.Interrupt)
	if code := p.wait(t); code != 1 {
		t.Errorf("with a request in flight: exit %d, want 1", code)
	}
	line := lines(t, p.stdout, "stopped, with requests cut", 1)[0]
	if line["level"] != "ERROR" || line["requests_cut"] != 1.0 || line["reason"] != "a second signal: interrupt" {
		t.Errorf("logged %v", line)
	}
}

// Whoever reads the log may stop reading, or go.
func TestLogThatNobodyReads(t *testing.T) {
	for _, gone := range []bool{false, true} {
		reader, writer, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		_, port := occupied(t)
		p := command(t, []string{"HOST=127.0.0.2", "PORT=" + port, "SHUTDOWN_DELAY=100ms"})
		p.Cmd.Stdout = writer
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { p.Process.Kill(); p.Wait() }()
		writer.Close()
		address := net.JoinHostPort("127.0.0.2", port)
		waitFor(t, address, func() bool { return !refused(address) })
		if gone {
			reader.Close()
		}
		long := "User-Agent: " + strings.Repeat("x", maxEcho) + "\r\n"
		for i := 0; i < 100; i++ { // 64 KiB are what a pipe holds
			conn := dial(t, address)
			fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n%s\r\n", long)
			if gone {
				receive(t, bufio.NewReader(conn), "GET")
			}
		}
		if response, _ := get(t, address, "GET", "/health", ""); response.StatusCode != 200 {
			t.Errorf("reader gone %v: /health answers %d", gone, response.StatusCode)
		}
		p.Process.Signal(syscall.SIGTERM)
		want := 0
		if !gone { // the requests above cannot finish: a second signal ends it
			waitFor(t, "the listener to close", func() bool { return refused(address) })
			p.Process.Signal(os.Interrupt)
			want = 1
		}
		if code := p.wait(t); code != want {
			t.Errorf("reader gone %v: %v, want exit %d", gone, p.ProcessState, want)
		}
		reader.Close()
	}
}

func TestStrayBytesDoNotHoldUpTheStop(t *testing.T) {
	p, address := launch(t, "SHUTDOWN_DELAY=500ms")
	conn := dial(t, address)
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	receive(t, bufio.NewReader(conn), "GET")
	io.WriteString(conn, "\r\n")
	p.Process.Signal(syscall.SIGTERM)
	if code := p.wait(t); code != 0 { // after readHeaderTimeout, before the timeout
		t.Errorf("exit %d, want 0; log:\n%s", code, p.stdout)
	}
}

func TestNoTimeoutNeededWhenIdle(t *testing.T) {
	p, address := launch(t, "SHUTDOWN_TIMEOUT=0s")
	get(t, address, "GET", "/", "")
	time.Sleep(freshFor) // the connection of get may count as new until then
	p.Process.Signal(syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit %d, want 0; log:\n%s", code, p.stdout)
	}
}

func TestUnreadBodyDoesNotHoldUpTheStop(t *testing.T) {
	p, address := launch(t, "SHUTDOWN_TIMEOUT=0s")
	conn := dial(t, address)
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n")
	receive(t, bufio.NewReader(conn), "POST")
	time.Sleep(freshFor) // for the service to note that it has answered; it goes on reading for 10 s
	p.Process.Signal(syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit %d, want 0; log:\n%s", code, p.stdout)
	}
}

func TestHealthcheck(t *testing.T) {
	for _, host := range []string{"", "127.0.0.1", "::1", "localhost", "0.0.0.0", "::"} {
		p := command(t, []string{"HOST=" + host, "PORT=0"})
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		address, _ := lines(t, p.stdout, "listening", 1)[0]["address"].(string)
		_, port, _ := net.SplitHostPort(address)
		environment := []string{"HOST=" + host, "PORT=" + port}
		check := command(t, environment, "-healthcheck")
		if code := check.finish(t); code != 0 || check.stdout.String()+check.stderr.String() != "" {
			t.Errorf("HOST=%s: exit %d, %q, want 0 and silence", host, code, check.stderr)
		}
		p.Process.Signal(syscall.SIGTERM)
		p.wait(t)

		check = command(t, environment, "-healthcheck")
		if code := check.finish(t); code != 1 || !strings.Contains(check.stderr.String(), "connection refused") {
			t.Errorf("HOST=%s, nobody there: exit %d, %q, want 1", host, code, check.stderr)
		}
	}
}

func TestHealthcheckOfOthers(t *testing.T) {
	for answer, want := range map[string]string{
		"": "i/o timeout", // hangs
		"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n": "answered 503 Service Unavailable",
		"HTTP/1.1 204 No Content\r\n\r\n":                               "answered 204 No Content",
		"SSH-2.0-OpenSSH\r\n":                                           "malformed HTTP response",
	} {
		listener, port := occupied(t)
		go func(answer string) {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				bufio.NewReader(conn).ReadString('\n')
				fmt.Fprint(conn, answer)
			}
		}(answer)
		check := command(t, []string{"HOST=127.0.0.1", "PORT=" + port}, "-healthcheck")
		began := time.Now()
		code := check.finish(t)
		stderr := check.stderr.String()
		if code != 1 || !strings.HasPrefix(stderr, "devops-info-service: not healthy: ") || !strings.Contains(stderr, want) {
			t.Errorf("%q: exit %d, %q, want 1 and %q", answer, code, stderr, want)
		}
		// 2 s by contract; the rest is for a slow machine.
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("%q: took %v", answer, took)
		}
	}
	for setting, want := range map[string]string{
		"PORT=0":   `PORT "0"`,
		"PORT=80a": `PORT "80a": must be 0 to 65535`,
	} {
		check := command(t, []string{setting}, "-healthcheck")
		if code := check.finish(t); code != 1 || !strings.Contains(check.stderr.String(), want) {
			t.Errorf("%s: exit %d, %q, want 1 and %q", setting, code, check.stderr, want)
		}
	}
}

func TestHeaderLimit(t *testing.T) {
	_, address := launch(t)
	const begin, end = "GET /health HTTP/1.1\r\nHost: localhost\r\nX: ", "\r\n\r\n"
	for size, want := range map[int]int{maxHeaderBytes: 200, maxHeaderBytes + 1: 431} {
		padding := strings.Repeat("x", size-len(begin)-len(end))
		if response, _ := send(t, address, "GET", begin+padding+end); response.StatusCode != want {
			t.Errorf("%d bytes of headers: %d, want %d", size, response.StatusCode, want)
		}
	}
}

func TestRunStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	stdout := &syncBuffer{}
	code := make(chan int)
	go func() {
		getenv := func(name string) string { return map[string]string{"PORT": "0", "TZ": "UTC"}[name] }
		code <- run(ctx, nil, getenv, stdout, io.Discard)
	}()
	lines(t, stdout, "listening", 1)
	cancel()
	if got := <-code; got != 0 {
		t.Errorf("exit %d, want 0", got)
	}
}
