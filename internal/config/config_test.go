package config

import (
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
	const (
		host     = ": must be an IP address (no brackets, no port) or a host name"
		port     = ": must be 0 to 65535"
		boolean  = ": must be true or false (or yes, no, on, off, 1, 0)"
		zone     = ": must be a name from the tz database, such as UTC or Asia/Tokyo"
		threads  = ": must be a whole number, 1 to 1024"
		duration = ": must be a duration of 0s or more, such as 500ms or 3s"
	)
	for name, test := range map[string]struct{ setting, want string }{
		"port with a letter":        {"PORT=80a", `PORT "80a"` + port},
		"port too large":            {"PORT=70000", `PORT "70000"` + port},
		"port one too large":        {"PORT=65536", `PORT "65536"` + port},
		"port negative":             {"PORT=-1", `PORT "-1"` + port},
		"port with a sign":          {"PORT=+80", `PORT "+80"` + port},
		"port with a space":         {"PORT= 80", `PORT " 80"` + port},
		"debug neither":             {"DEBUG=maybe", `DEBUG "maybe"` + boolean},
		"zone unknown":              {"TZ=Mars/Olympus", `TZ "Mars/Olympus"` + zone},
		"only a colon":              {"TZ=:", `TZ ":"` + zone},
		"zone Local":                {"TZ=Local", `TZ "Local"` + zone},
		"zone outside the database": {"TZ=../../etc/passwd", `TZ "../../etc/passwd"` + zone},
		"zone with a line break":    {"TZ=evil\nline", `TZ "evil\nline"` + zone},
		"threads not a number":      {"GOMAXPROCS=many", `GOMAXPROCS "many"` + threads},
		"threads zero":              {"GOMAXPROCS=0", `GOMAXPROCS "0"` + threads},
		"threads negative":          {"GOMAXPROCS=-2", `GOMAXPROCS "-2"` + threads},
		"threads with a plus":       {"GOMAXPROCS=+1", `GOMAXPROCS "+1"` + threads}, // the Go runtime ignores it
		"threads too many":          {"GOMAXPROCS=1025", `GOMAXPROCS "1025"` + threads},
		"delay negative":            {"SHUTDOWN_DELAY=-1s", `SHUTDOWN_DELAY "-1s"` + duration},
		"delay without unit":        {"SHUTDOWN_DELAY=5", `SHUTDOWN_DELAY "5"` + duration},
		"timeout a word":            {"SHUTDOWN_TIMEOUT=soon", `SHUTDOWN_TIMEOUT "soon"` + duration},
		"timeout without unit":      {"SHUTDOWN_TIMEOUT=5", `SHUTDOWN_TIMEOUT "5"` + duration},
		"host in brackets":          {"HOST=[::1]", `HOST "[::1]"` + host},
		"host with a port":          {"HOST=localhost:80", `HOST "localhost:80"` + host},
		"host with a line break":    {"HOST=a\nb", `HOST "a\nb"` + host},
		"host that is a URL":        {"HOST=http://localhost", `HOST "http://localhost"` + host},
		"host with a space":         {"HOST=my host", `HOST "my host"` + host},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := readSetting(test.setting)
			if err == nil || err.Error() != test.want {
				t.Errorf("%s: got the error %v, want %s", test.setting, err, test.want)
			}
			if cfg != (Config{}) {
				t.Errorf("%s: got %+v beside the error, want nothing", test.setting, cfg)
			}
		})
	}
}

func TestGoodValues(t *testing.T) {
	t.Parallel()
	defaults, err := readSetting("")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		setting string
		change  func(*Config) // makes the defaults into what is wanted
	}{
		"port zero":            {"PORT=0", func(c *Config) { c.Port = 0 }},
		"port at the end":      {"PORT=65535", func(c *Config) { c.Port = 65535 }},
		"debug":                {"DEBUG=true", func(c *Config) { c.Debug = true }},
		"debug as a digit":     {"DEBUG=1", func(c *Config) { c.Debug = true }},
		"debug off":            {"DEBUG=0", func(*Config) {}},
		"debug in words":       {"DEBUG=Yes", func(c *Config) { c.Debug = true }},
		"debug on":             {"DEBUG=ON", func(c *Config) { c.Debug = true }},
		"no debug in words":    {"DEBUG=no", func(*Config) {}},
		"debug OFF":            {"DEBUG=OFF", func(*Config) {}},
		"zone with a colon":    {"TZ=:UTC", func(c *Config) { c.Location = time.UTC }},
		"zone of the system":   {"TZ=:/etc/localtime", func(*Config) {}},
		"zone":                 {"TZ=UTC", func(c *Config) { c.Location = time.UTC }},
		"delay":                {"SHUTDOWN_DELAY=500ms", func(c *Config) { c.ShutdownDelay = 500 * time.Millisecond }},
		"timeout zero":         {"SHUTDOWN_TIMEOUT=0s", func(c *Config) { c.ShutdownTimeout = 0 }},
		"timeout":              {"SHUTDOWN_TIMEOUT=1m30s", func(c *Config) { c.ShutdownTimeout = 90 * time.Second }},
		"threads":              {"GOMAXPROCS=3", func(c *Config) { c.GOMAXPROCSSet = true }},
		"memory":               {"GOMEMLIMIT=48MiB", func(c *Config) { c.GOMEMLIMITSet = true }},
		"host by name":         {"HOST=my_host-1.local", func(c *Config) { c.Host = "my_host-1.local" }},
		"host with interface":  {"HOST=fe80::1%eth0", func(c *Config) { c.Host = "fe80::1%eth0" }},
		"host empty":           {"HOST=", func(*Config) {}},
		"every variable empty": {"", func(*Config) {}},
	} {
		t.Run(name, func(t *testing.T) {
			want := defaults
			test.change(&want)
			got, err := readSetting(test.setting)
			if err != nil || got != want {
				t.Errorf("%s: got %+v (%v), want %+v", test.setting, got, err, want)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	got, err := readSetting("")
	want := Config{Port: 5002, Location: time.Local, ShutdownTimeout: 8 * time.Second}
	if err != nil || got != want {
		t.Errorf("got %+v (%v), want %+v", got, err, want)
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
		t.Run("HOST="+host, func(t *testing.T) {
			cfg, err := readSetting("HOST=" + host)
			if got := cfg.Network() + " " + cfg.Address(); err != nil || got != want {
				t.Errorf("got %q (%v), want %q", got, err, want)
			}
		})
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
