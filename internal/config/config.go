// Package config reads the service's configuration from environment variables and checks it. It does
// not apply it.
package config

import (
	"fmt"
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

	Debug bool

	Location *time.Location // named as in TZ; time.Local if that is empty

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
  GOMAXPROCS        threads that run Go code at once, 1 to 1024 (default: the
                    container's CPU limit rounded up, or the machine's CPUs)
  GOMEMLIMIT        memory that the Go runtime tries to stay below, such as 48MiB
                    (default: five eighths of the container's memory limit)
`, DefaultPort, DefaultShutdownDelay, DefaultShutdownTimeout)
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

// Read reads the configuration. Its error names the variable, the value and what is accepted.
func Read(getenv func(string) string) (Config, error) {
	c := Config{
		Host:          getenv("HOST"),
		GOMAXPROCSSet: getenv("GOMAXPROCS") != "",
		GOMEMLIMITSet: getenv("GOMEMLIMIT") != "",
	}
	var err error
	if !validHost(c.Host) {
		return Config{}, fmt.Errorf("HOST %q: must be an IP address (no brackets, no port) or a host name", c.Host)
	}
	if c.Port, err = readPort(getenv("PORT")); err != nil {
		return Config{}, err
	}
	if c.Debug, err = readBool("DEBUG", getenv("DEBUG")); err != nil {
		return Config{}, err
	}
	if c.Location, err = readLocation(getenv("TZ")); err != nil {
		return Config{}, err
	}
	if err := checkThreads(getenv("GOMAXPROCS")); err != nil {
		return Config{}, err
	}
	if c.ShutdownDelay, err = readDuration("SHUTDOWN_DELAY", getenv("SHUTDOWN_DELAY"), DefaultShutdownDelay); err != nil {
		return Config{}, err
	}
	c.ShutdownTimeout, err = readDuration("SHUTDOWN_TIMEOUT", getenv("SHUTDOWN_TIMEOUT"), DefaultShutdownTimeout)
	if err != nil {
		return Config{}, err
	}
	return c, nil
}

func validHost(host string) bool {
	const nameCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
	_, err := netip.ParseAddr(host)
	return err == nil || strings.Trim(host, nameCharacters) == ""
}

func readPort(value string) (uint16, error) {
	if value == "" {
		return DefaultPort, nil
	}
	port, err := strconv.ParseUint(value, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("PORT %q: must be 0 to 65535", value)
	}
	return uint16(port), nil
}

func readBool(name, value string) (bool, error) {
	switch strings.ToLower(value) {
	case "true", "yes", "on", "1", "t", "y":
		return true, nil
	case "", "false", "no", "off", "0", "f", "n":
		return false, nil
	}
	return false, fmt.Errorf("%s %q: must be true or false (or yes, no, on, off, 1, 0)", name, value)
}

// readLocation reads a zone as tzset(3) does, with or without a colon before it.
func readLocation(value string) (*time.Location, error) {
	name := strings.TrimPrefix(value, ":")
	if value == "" || name == "/etc/localtime" {
		return time.Local, nil
	}
	location, err := time.LoadLocation(name)
	if err != nil || name == "" || location == time.Local { // "Local" is a name of Go's, not of the tz database
		return nil, fmt.Errorf("TZ %q: must be a name from the tz database, such as UTC or Asia/Tokyo", value)
	}
	return location, nil
}

func checkThreads(value string) error {
	if value == "" {
		return nil
	}
	if n, err := strconv.ParseUint(value, 10, 32); err != nil || n < 1 || n > maxThreads {
		return fmt.Errorf("GOMAXPROCS %q: must be a whole number, 1 to %d", value, maxThreads)
	}
	return nil
}

func readDuration(name, value string, unset time.Duration) (time.Duration, error) {
	if value == "" {
		return unset, nil
	}
	duration, err := time.ParseDuration(value)
	if err != nil || duration < 0 {
		return 0, fmt.Errorf("%s %q: must be a duration of 0s or more, such as 500ms or 3s", name, value)
	}
	return duration, nil
}
