package process

import (
	"net"
	"os"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"devops-info-service/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

func TestFlagsAndBadEnvironments(t *testing.T) {
	t.Parallel()
	platform := runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
	const name, usage = "devops-info-service: ", "Usage: devops-info-service [flag]\n"
	for _, test := range []struct {
		args, environment string
		code              int
		stdout, stderr    string // how each begins; empty: nothing is printed
	}{
		{"-h", "", 0, usage, ""},
		{"-version", "", 0, "devops-info-service 1.0.0 " + platform + "\n", ""},
		{"-port 80", "", 2, "", name + "flag provided but not defined: -port\n\n" + usage},
		{"-version=perhaps", "", 2, "", name + "invalid boolean value \"perhaps\" for -version: "},
		{"serve", "", 2, "", name + "argument \"serve\": no arguments are accepted\n\n" + usage},
		{"-healthcheck now", "", 2, "", name + "argument \"now\": no arguments are accepted\n\n" + usage},
		{"", "PORT=80a", 2, "", name + "PORT \"80a\": must be 0 to 65535\n"},
		// Not 2, because Docker reserves it in a HEALTHCHECK.
		{"-healthcheck", "PORT=80a", 1, "", name + "not healthy: PORT \"80a\": must be 0 to 65535\n"},
		{"-healthcheck", "PORT=0", 1, "", name + "not healthy: PORT \"0\": "},
	} {
		p, code := harness.Run(t, []string{test.environment}, strings.Fields(test.args)...)
		if code != test.code {
			t.Errorf("%s %s: got exit code %d, want %d", test.environment, test.args, code, test.code)
		}
		for _, output := range []struct{ name, got, want string }{
			{"stdout", p.Stdout.String(), test.stdout},
			{"stderr", p.Stderr.String(), test.stderr},
		} {
			if !strings.HasPrefix(output.got, output.want) || output.want == "" && output.got != "" {
				t.Errorf("%s %s: got %s %q, want %q", test.environment, test.args, output.name, output.got, output.want)
			}
		}
	}
}

func TestPortThatIsTaken(t *testing.T) {
	t.Parallel()
	_, port, _ := net.SplitHostPort(harness.Listen(t).Addr().String())
	p, code := harness.Run(t, []string{"HOST=127.0.0.1", "PORT=" + port})
	// The system's own words follow, and what to do.
	want := `devops-info-service: HOST "127.0.0.1", PORT "` + port + `": listen tcp4 127.0.0.1:` + port + ": bind: "
	stderr := p.Stderr.String()
	if code != 1 || !strings.HasPrefix(stderr, want) || !strings.HasSuffix(stderr, "; choose another PORT, such as 8080\n") || strings.Count(stderr, "\n") != 1 || p.Stdout.String() != "" {
		t.Errorf("got exit code %d, stdout %q, stderr %q, want 1 and one line %q…", code, p.Stdout, stderr, want)
	}
	// No port helps where the address is of no machine (RFC 5737).
	p, code = harness.Run(t, []string{"HOST=192.0.2.1", "PORT=0"})
	if stderr := p.Stderr.String(); code != 1 || !strings.Contains(stderr, ": bind: ") || strings.Contains(stderr, "choose") {
		t.Errorf("another machine's address: got exit code %d and %q, want 1 and no advice", code, stderr)
	}
}

func TestListens(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]bool{"HOST=": true, "HOST=0.0.0.0": false} {
		_, address := harness.Launch(t, setting)
		_, port, _ := net.SplitHostPort(address)
		if got := !harness.Refused("[::1]:" + port); got != want {
			t.Errorf("%s listens on ::1: got %t, want %t", setting, got, want)
		}
		harness.Get(t, address, "/") // on 127.0.0.1
	}
}

func TestTimezone(t *testing.T) {
	t.Parallel()
	_, address := harness.Launch(t)
	_, body := harness.Get(t, address, "/")
	system := regexp.MustCompile(`(Z|[+-]\d\d:\d\d)","timezone":"[^"]+"`).FindStringSubmatch(body)
	for _, test := range []struct{ setting, offset, response string }{
		{"TZ=Asia/Tokyo", "+09:00", `+09:00","timezone":"Asia/Tokyo"`},  // where current_time ends
		{"TZ=:Asia/Tokyo", "+09:00", `+09:00","timezone":"Asia/Tokyo"`}, // as tzset(3) writes it
		{"TZ=", system[1], system[0]},
	} {
		p, address := harness.Launch(t, test.setting)
		if _, body := harness.Get(t, address, "/"); !strings.Contains(body, test.response) {
			t.Errorf("%s: got %s, want %s in it", test.setting, body, test.response)
		}
		if line := harness.WaitForLog(t, p.Stdout, "request", 1)[0]; !strings.HasSuffix(line["time"].(string), test.offset) {
			t.Errorf("%s: logged the time %v, want one that ends in %s", test.setting, line["time"], test.offset)
		}
	}
}

func TestDebugLogsHealthChecks(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]int{"DEBUG=Yes": 3, "DEBUG=off": 1} {
		p, address := harness.Launch(t, setting)
		harness.Get(t, address, "/health")
		harness.Get(t, address, "/health")
		harness.Get(t, address, "/")
		p.Signal(t, os.Interrupt)
		p.Wait(t)
		if got := len(harness.LogLines(p.Stdout.String(), "request")); got != want {
			t.Errorf("%s: got %d requests in the log, want %d", setting, got, want)
		}
	}
}

func TestLogSaysWhatListens(t *testing.T) {
	t.Parallel()
	p, _ := harness.Launch(t, "GOMAXPROCS=3")
	line := harness.WaitForLog(t, p.Stdout, "listening", 1)[0]
	if n, _ := line["max_connections"].(float64); line["level"] != "INFO" || line["version"] != "1.0.0" || line["gomaxprocs"] != 3.0 || n < 1 {
		t.Errorf("logged %v, want INFO, version 1.0.0, the GOMAXPROCS of the environment, and connections", line)
	}
}

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"", "127.0.0.1", "::1", "localhost", "0.0.0.0", "::"} {
		p := harness.Prepare(t, []string{"HOST=" + host, "PORT=0"})
		p.Start(t)
		environment := []string{"HOST=" + host, "PORT=" + harness.WaitForPort(t, p.Stdout)}
		check, code := harness.Run(t, environment, "-healthcheck")
		if output := check.Stdout.String() + check.Stderr.String(); code != 0 || output != "" {
			t.Errorf("HOST=%s: got exit code %d and %q, want 0 and nothing", host, code, output)
		}
		p.Signal(t, os.Interrupt)
		p.Wait(t)
		check, code = harness.Run(t, environment, "-healthcheck")
		if code != 1 || !strings.Contains(check.Stderr.String(), "refused") { // in every system's words
			t.Errorf("HOST=%s, after the stop: got exit code %d and %q, want 1 and refused", host, code, check.Stderr)
		}
	}
}
