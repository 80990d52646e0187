package config

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

// readSetting reads the configuration of an environment with one variable: NAME=value.
func readSetting(setting string) (Config, error) {
	name, value, _ := strings.Cut(setting, "=")
	return Read(func(asked string) string {
		if asked == name {
			return value
		}
		return ""
	})
}

func TestBadValueIsNamedInTheError(t *testing.T) {
	t.Parallel()
	for accepted, settings := range map[string][]string{
		"an IP address (no brackets, no port) or a host name": {
			"HOST=[::1]", "HOST=localhost:80", "HOST=http://localhost", "HOST=my host", "HOST=a\nb",
		},
		"0 to 65535": {"PORT=80a", "PORT=65536", "PORT=-1", "PORT=+80", "PORT= 80"},
		"true or false (or yes, no, on, off, 1, 0)": {"DEBUG=maybe"},
		"a name from the tz database, such as UTC or Asia/Tokyo": {
			"TZ=Mars/Olympus", "TZ=:", "TZ=Local", "TZ=../../etc/passwd",
		},
		"a whole number, 1 to 1024": { // the Go runtime ignores +1
			"GOMAXPROCS=many", "GOMAXPROCS=0", "GOMAXPROCS=-2", "GOMAXPROCS=+1", "GOMAXPROCS=1025",
		},
		"a duration of 0s or more, such as 500ms or 3s": {
			"SHUTDOWN_DELAY=-1s", "SHUTDOWN_DELAY=5", "SHUTDOWN_TIMEOUT=soon",
		},
	} {
		for _, setting := range settings {
			name, value, _ := strings.Cut(setting, "=")
			want := fmt.Sprintf("%s %q: must be %s", name, value, accepted)
			cfg, err := readSetting(setting)
			if err == nil || err.Error() != want {
				t.Errorf("got the error %v, want %s", err, want)
			}
			if cfg != (Config{}) {
				t.Errorf("%s: got %+v beside the error, want nothing", setting, cfg)
			}
		}
	}
}

func TestFirstBadValueIsTheError(t *testing.T) {
	t.Parallel()
	_, err := Read(func(name string) string { return "not this " + name })
	if err == nil || !strings.HasPrefix(err.Error(), `HOST "not this HOST": must be`) {
		t.Errorf("got the error %v, want HOST's", err)
	}
}

func TestGoodValues(t *testing.T) {
	t.Parallel()
	unchanged := func(*Config) {}
	debug := func(c *Config) { c.LogLevel = slog.LevelDebug }
	utc := func(c *Config) { c.Location = time.UTC }
	for setting, change := range map[string]func(*Config){
		"":                       unchanged,
		"PORT=0":                 func(c *Config) { c.Port = 0 },
		"PORT=65535":             func(c *Config) { c.Port = 65535 },
		"DEBUG=true":             debug,
		"DEBUG=1":                debug,
		"DEBUG=Yes":              debug,
		"DEBUG=ON":               debug,
		"DEBUG=0":                unchanged,
		"DEBUG=no":               unchanged,
		"DEBUG=OFF":              unchanged,
		"TZ=UTC":                 utc,
		"TZ=:UTC":                utc,
		"TZ=:/etc/localtime":     unchanged,
		"SHUTDOWN_DELAY=500ms":   func(c *Config) { c.ShutdownDelay = 500 * time.Millisecond },
		"SHUTDOWN_TIMEOUT=0s":    func(c *Config) { c.ShutdownTimeout = 0 },
		"SHUTDOWN_TIMEOUT=1m30s": func(c *Config) { c.ShutdownTimeout = 90 * time.Second },
		"GOMAXPROCS=3":           func(c *Config) { c.GOMAXPROCSSet = true },
		"GOMEMLIMIT=48MiB":       func(c *Config) { c.GOMEMLIMITSet = true },
		"HOST=my_host-1.local":   func(c *Config) { c.Host = "my_host-1.local" },
		"HOST=fe80::1%eth0":      func(c *Config) { c.Host = "fe80::1%eth0" },
	} {
		want := Config{Port: 5002, Location: time.Local, ShutdownTimeout: 8 * time.Second}
		change(&want)
		got, err := readSetting(setting)
		if err != nil || got != want {
			t.Errorf("%s: got %+v (%v), want %+v", setting, got, err, want)
		}
	}
}

func TestNetworkAndAddress(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"":          "tcp :5002",
		"0.0.0.0":   "tcp4 0.0.0.0:5002",
		"127.0.0.1": "tcp4 127.0.0.1:5002",
		"::":        "tcp [::]:5002",
		"::1":       "tcp [::1]:5002",
		"localhost": "tcp localhost:5002",
	} {
		cfg, err := readSetting("HOST=" + host)
		if got := cfg.Network() + " " + cfg.Address(); err != nil || got != want {
			t.Errorf("HOST=%s: got %q (%v), want %q", host, got, err, want)
		}
	}
}

func TestEveryTimeZoneIsAccepted(t *testing.T) {
	t.Parallel()
	zones := 0
	for _, file := range harness.ZoneArchive(t).File {
		if strings.HasSuffix(file.Name, "/") {
			continue
		}
		zones++
		cfg, err := readSetting("TZ=" + file.Name)
		if err != nil || cfg.Location.String() != file.Name {
			t.Errorf("%s: got %v (%v)", file.Name, cfg.Location, err)
		}
	}
	if zones < 400 {
		t.Errorf("tried only %d zones", zones)
	}
}

func TestHelpNamesEveryVariable(t *testing.T) {
	t.Parallel()
	asked := map[string]bool{}
	if _, err := Read(func(name string) string { asked[name] = true; return "" }); err != nil {
		t.Fatal(err)
	}
	for name := range asked {
		if !strings.Contains(Help(), "\n  "+name+" ") {
			t.Errorf("the help does not name %s", name)
		}
	}
	if len(asked) < 8 {
		t.Errorf("Read asks for only %d variables", len(asked))
	}
}
