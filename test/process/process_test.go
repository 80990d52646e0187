package process

import (
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

func TestFlags(t *testing.T) {
	t.Parallel()
	platform := runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
	const name, usage = "devops-info-service: ", "Usage: devops-info-service [flag]\n"
	for _, test := range []struct {
		args           string
		code           int
		stdout, stderr string // how each begins; empty: nothing is printed
	}{
		{"-h", 0, usage, ""},
		{"--help", 0, usage, ""},
		{"-version", 0, "devops-info-service 1.0.0 " + platform + "\n", ""},
		{"-port 80", 2, "", name + "flag provided but not defined: -port\n\n" + usage},
		{"-version=perhaps", 2, "", name + "invalid boolean value \"perhaps\" for -version: "},
		{"serve", 2, "", name + "argument \"serve\": no arguments are accepted\n\n" + usage},
		{"-healthcheck now", 2, "", name + "argument \"now\": no arguments are accepted\n\n" + usage},
	} {
		test := test
		t.Run(test.args, func(t *testing.T) {
			t.Parallel()
			p, code := harness.Run(t, nil, strings.Fields(test.args)...)
			if code != test.code {
				t.Errorf("got exit code %d, want %d", code, test.code)
			}
			for _, output := range []struct{ name, got, want string }{
				{"stdout", p.Stdout.String(), test.stdout},
				{"stderr", p.Stderr.String(), test.stderr},
			} {
				if !strings.HasPrefix(output.got, output.want) || output.want == "" && output.got != "" {
					t.Errorf("got %s %q, want %q", output.name, output.got, output.want)
				}
			}
		})
	}
}

func TestBadEnvironmentStopsTheStart(t *testing.T) {
	t.Parallel()
	p, code := harness.Run(t, []string{"PORT=80a"})
	const want = "devops-info-service: PORT \"80a\": must be 0 to 65535\n"
	if code != 2 || p.Stderr.String() != want || p.Stdout.String() != "" {
		t.Errorf("got exit code %d, stdout %q, stderr %q, want 2 and %q", code, p.Stdout, p.Stderr, want)
	}
}

func TestPortThatIsTaken(t *testing.T) {
	t.Parallel()
	_, port, _ := net.SplitHostPort(harness.Listen(t).Addr().String())
	p, code := harness.Run(t, []string{"HOST=127.0.0.1", "PORT=" + port})
	want := `devops-info-service: HOST "127.0.0.1", PORT "` + port + `": listen tcp4 127.0.0.1:` + port + ": bind: address already in use\n"
	if code != 1 || p.Stderr.String() != want || p.Stdout.String() != "" {
		t.Errorf("got exit code %d, stdout %q, stderr %q, want 1 and %q", code, p.Stdout, p.Stderr, want)
	}
}

func TestListensOnBothFamilies(t *testing.T) {
	t.Parallel()
	_, address := harness.Launch(t)
	_, port, _ := net.SplitHostPort(address)
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			if got := harness.GetInfo(t, net.JoinHostPort(host, port)).Request.ClientIP; got != host {
				t.Errorf("got client_ip %q, want %q", got, host)
			}
		})
	}
}

func TestListensOnIPv4Alone(t *testing.T) {
	t.Parallel()
	_, address := harness.Launch(t, "HOST=0.0.0.0")
	_, port, _ := net.SplitHostPort(address)
	if !harness.Refused(net.JoinHostPort("::1", port)) {
		t.Error("HOST=0.0.0.0 listens on ::1 too")
	}
	harness.GetInfo(t, address)
}

func TestEmptyTimezoneIsTheSystems(t *testing.T) {
	t.Parallel()
	_, empty := harness.Launch(t, "HOST=", "DEBUG=", "TZ=")
	_, unset := harness.Launch(t)
	if got, want := harness.GetInfo(t, empty).Runtime.Timezone, harness.GetInfo(t, unset).Runtime.Timezone; got != want {
		t.Errorf("got the zone %q with TZ empty, want %q as with TZ unset", got, want)
	}
}

func TestTimezone(t *testing.T) {
	t.Parallel()
	_, address := harness.Launch(t, "TZ=Asia/Tokyo")
	if got := harness.GetInfo(t, address).Runtime; got.Timezone != "Asia/Tokyo" || !strings.HasSuffix(got.CurrentTime, "+09:00") {
		t.Errorf("got %+v, want Asia/Tokyo and +09:00", got)
	}
}

func TestDebugLogsHealthChecks(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]int{"DEBUG=true": 3, "DEBUG=0": 1} {
		setting, want := setting, want
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			p, address := harness.Launch(t, setting)
			harness.Get(t, address, "/health")
			harness.Get(t, address, "/health")
			harness.Get(t, address, "/")
			harness.WaitForLog(t, p.Stdout, "request", want)
			p.Signal(t, os.Interrupt)
			p.Wait(t)
			if got := len(harness.LogLines(p.Stdout.String(), "request")); got != want {
				t.Errorf("got %d requests in the log, want %d", got, want)
			}
		})
	}
}

func TestLogSaysWhatListens(t *testing.T) {
	t.Parallel()
	p, _ := harness.Launch(t, "GOMAXPROCS=3")
	line := harness.WaitForLog(t, p.Stdout, "listening", 1)[0]
	if line["level"] != "INFO" || line["version"] != "1.0.0" || line["gomaxprocs"] != 3.0 {
		t.Errorf("logged %v, want INFO, version 1.0.0 and the GOMAXPROCS 3 of the environment", line)
	}
	if n, _ := line["max_connections"].(float64); n < 1 {
		t.Errorf("logged max_connections %v, want 1 or more", line["max_connections"])
	}
}

func TestGOMAXPROCSFitsTheMachine(t *testing.T) {
	t.Parallel()
	p, _ := harness.Launch(t)
	got, _ := harness.WaitForLog(t, p.Stdout, "listening", 1)[0]["gomaxprocs"].(float64)
	if got < 1 || got > float64(runtime.NumCPU()) {
		t.Errorf("got gomaxprocs %v, want 1 to %d", got, runtime.NumCPU())
	}
}

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"", "127.0.0.1", "::1", "localhost", "0.0.0.0", "::"} {
		host := host
		t.Run("HOST="+host, func(t *testing.T) {
			t.Parallel()
			p := harness.Prepare(t, []string{"HOST=" + host, "PORT=0"})
			p.Start(t)
			environment := []string{"HOST=" + host, "PORT=" + harness.WaitForPort(t, p.Stdout)}
			check, code := harness.Run(t, environment, "-healthcheck")
			if output := check.Stdout.String() + check.Stderr.String(); code != 0 || output != "" {
				t.Errorf("got exit code %d and %q, want 0 and nothing", code, output)
			}
			p.Signal(t, os.Interrupt)
			p.Wait(t)

			check, code = harness.Run(t, environment, "-healthcheck")
			if code != 1 || !strings.Contains(check.Stderr.String(), "connection refused") {
				t.Errorf("after the stop: got exit code %d and %q, want 1 and connection refused", code, check.Stderr)
			}
		})
	}
}

func TestHealthcheckFails(t *testing.T) {
	t.Parallel()
	silent := harness.Listen(t) // the kernel connects, and nothing is ever sent
	_, silentPort, _ := net.SplitHostPort(silent.Addr().String())
	for name, test := range map[string]struct{ setting, want string }{
		"no response":     {"PORT=" + silentPort, "i/o timeout"},
		"a free port":     {"PORT=0", `PORT "0"`},
		"a bad port":      {"PORT=80a", `PORT "80a": must be 0 to 65535`},
		"a bad time zone": {"TZ=Mars", `TZ "Mars": must be a name from the tz database`},
	} {
		test := test
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			check, code := harness.Run(t, []string{"HOST=127.0.0.1", test.setting}, "-healthcheck")
			stderr := check.Stderr.String()
			// Not 2, because Docker reserves it.
			if code != 1 || !strings.HasPrefix(stderr, "devops-info-service: not healthy: ") || !strings.Contains(stderr, test.want) {
				t.Errorf("got exit code %d and %q, want 1 and %q", code, stderr, test.want)
			}
		})
	}
}

func TestServesWith64FileDescriptors(t *testing.T) {
	t.Parallel()
	p := harness.Prepare(t, []string{"PORT=0"})
	p.LimitFiles(64)
	p.Start(t)
	address := p.Address(t)
	line := harness.WaitForLog(t, p.Stdout, "listening", 1)[0]
	if n, _ := line["max_connections"].(float64); n < 1 || n >= 64 {
		t.Errorf("got max_connections %v, want fewer than 64", n)
	}
	for i := 0; i < 200; i++ {
		harness.Dial(t, address)
	}
	began := time.Now()
	harness.WaitForHealth(t, address)
	if took := time.Since(began); took > time.Second && !harness.RaceEnabled() {
		t.Errorf("with 200 connections, /health took %v, want a second at most", took)
	}
}
