// Package config reads the service's configuration from environment variables and checks it. It does
// not apply it.
package config

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Defaults of variables that are unset or empty.
const (
	DefaultPort            = 5002
	DefaultShutdownDelay   = 0 * time.Second
	DefaultShutdownTimeout = 8 * time.Second // with the delay, below the 10 s after which docker stop kills
)

// maxThreads bounds GOMAXPROCS, because the Go runtime needs some 30 KB for each thread.
const maxThreads = 1024

// Config is the whole configuration of the service.
type Config struct {
	Host string // empty: all interfaces
	Port uint16 // 0: any free port

	LogLevel slog.Level // slog.LevelDebug or slog.LevelInfo

	Location *time.Location // named as in TZ; time.Local for the system's

	GOMAXPROCSSet bool // the Go runtime reads these two itself
	GOMEMLIMITSet bool

	ShutdownDelay   time.Duration // from the signal until the listener closes
	ShutdownTimeout time.Duration // from then on, for the requests in flight
}

// Help describes every variable that Read reads.
func Help() string {
	return fmt.Sprintf(`Environment (unset and empty mean the default):
  HOST   address to listen on: an IP address or a name
         (default: all interfaces, IPv4 and IPv6)
  PORT   port to listen on, 0 to 65535; 0 takes a free one (default: %d)
  DEBUG  true or false; true also logs health checks (default: false)
  TZ     time zone of current_time and the log, such as Asia/Tokyo
         (default: the system's)
  SHUTDOWN_DELAY    after SIGTERM or SIGINT, how long /health answers 503 while
                    everything is still served (a duration; default: %v)
  SHUTDOWN_TIMEOUT  after that, how long requests in flight have to finish
                    (a duration; default: %v)
  GOMAXPROCS        threads that run Go code at once, 1 to %d (default: the
                    container's CPU limit rounded up, or the machine's CPUs)
  GOMEMLIMIT        memory that the Go runtime tries to stay below, such as 48MiB
                    (default: nine sixteenths of the container's memory limit)
`, DefaultPort, DefaultShutdownDelay, DefaultShutdownTimeout, maxThreads)
}

// Address is the host and port in the form that net.Listen and net.Dial take. For an empty or
// unspecified host, Listen takes every interface and Dial takes this machine.
func (c Config) Address() string {
	return net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))
}

// Network is the network of Address. It is "tcp4" for an IPv4 address because "tcp" would make
// 0.0.0.0 listen on IPv6 too.
func (c Config) Network() string {
	if host, err := netip.ParseAddr(c.Host); err == nil && host.Is4() {
		return "tcp4"
	}
	return "tcp"
}

// Read reads the configuration. Its error names the first bad variable, its value and what is accepted.
func Read(getenv func(string) string) (Config, error) {
	const duration = "a duration of 0s or more, such as 500ms or 3s"
	env := &environment{getenv: getenv}
	c := Config{
		Host:            read(env, "HOST", "", parseHost, "an IP address (no brackets, no port) or a host name"),
		Port:            read(env, "PORT", DefaultPort, parsePort, "0 to 65535"),
		LogLevel:        read(env, "DEBUG", slog.LevelInfo, parseDebug, "true or false (or yes, no, on, off, 1, 0)"),
		Location:        read(env, "TZ", time.Local, parseZone, "a name from the tz database, such as UTC or Asia/Tokyo"),
		GOMAXPROCSSet:   read(env, "GOMAXPROCS", false, checkThreads, fmt.Sprintf("a whole number, 1 to %d", maxThreads)),
		GOMEMLIMITSet:   getenv("GOMEMLIMIT") != "",
		ShutdownDelay:   read(env, "SHUTDOWN_DELAY", DefaultShutdownDelay, parseDuration, duration),
		ShutdownTimeout: read(env, "SHUTDOWN_TIMEOUT", DefaultShutdownTimeout, parseDuration, duration),
	}
	if env.err != nil {
		return Config{}, env.err
	}
	return c, nil
}

type environment struct {
	getenv func(string) string
	err    error // of the first bad variable
}

// read returns a variable as parse understands it, or unset if it is unset or empty.
func read[T any](env *environment, name string, unset T, parse func(string) (T, bool), accepted string) T {
	text := env.getenv(name)
	if text == "" {
		return unset
	}
	value, ok := parse(text)
	if !ok && env.err == nil {
		env.err = fmt.Errorf("%s %q: must be %s", name, text, accepted)
	}
	return value
}

func parseHost(text string) (string, bool) {
	const nameCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
	_, err := netip.ParseAddr(text)
	return text, err == nil || strings.Trim(text, nameCharacters) == ""
}

func parsePort(text string) (uint16, bool) {
	port, err := strconv.ParseUint(text, 10, 16)
	return uint16(port), err == nil
}

func parseDebug(text string) (slog.Level, bool) {
	switch strings.ToLower(text) {
	case "true", "yes", "on", "1", "t", "y":
		return slog.LevelDebug, true
	case "false", "no", "off", "0", "f", "n":
		return slog.LevelInfo, true
	}
	return 0, false
}

// parseZone reads the name of a zone or /etc/localtime, with or without the colon that tzset(3) allows before it.
func parseZone(text string) (*time.Location, bool) {
	name := strings.TrimPrefix(text, ":")
	if name == "/etc/localtime" {
		return time.Local, true
	}
	location, err := time.LoadLocation(name)
	// "" and "Local" are names of Go's, not of the tz database.
	return location, err == nil && name != "" && location != time.Local
}

// checkThreads only checks the number, because the Go runtime reads it itself.
func checkThreads(text string) (set, ok bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return true, err == nil && n >= 1 && n <= maxThreads
}

func parseDuration(text string) (time.Duration, bool) {
	duration, err := time.ParseDuration(text)
	return duration, err == nil && duration >= 0
}
