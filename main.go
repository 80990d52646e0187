// Devops-info-service is an HTTP service with two endpoints that answer in JSON:
//
//	GET /        what it is, what it runs on, for how long, and who asked
//	GET /health  whether it is able to serve
//
// It is configured by environment variables; devops-info-service -h lists them.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
	_ "time/tzdata" // every time zone, also where the machine has no zone files
)

// Set by the linker: -ldflags "-X main.version=… -X main.revision=…".
var (
	version  = "1.0.0"
	revision = "" // the commit; empty where unknown
)

// Defaults of the environment.
const (
	defaultPort            = 5002
	defaultShutdownDelay   = 0 * time.Second
	defaultShutdownTimeout = 8 * time.Second // with the delay, below the 10 s after which docker stop kills
)

// What a peer can stretch, and how far.
const (
	readHeaderTimeout = 5 * time.Second  // a request's header: one packet, sent at once, from any real client
	readTimeout       = 10 * time.Second // a whole request: no endpoint reads a body
	writeTimeout      = 10 * time.Second // an answer, about 1 KB
	idleTimeout       = 60 * time.Second // between requests: above the usual probe period, so probes reuse connections
	maxHeaderBytes    = 16 << 10         // request line and headers: twice what common proxies pass on

	// net/http reads this much more than Server.MaxHeaderBytes before it answers 431
	// (Server.initialReadLimitSize), so it is taken off to make maxHeaderBytes exact.
	headerSlop = 4096

	healthcheckTimeout = 2 * time.Second // below the 3 s that the image's HEALTHCHECK allows
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1 // could not listen, could not finish, or not healthy
	exitUsage   = 2 // a bad flag, argument or environment value
)

const usage = `Usage: %s [flag]

Answers GET / and GET /health in JSON over HTTP.

Flags:
  -h            print this help and exit
  -version      print version, revision if known, Go version, OS/architecture
  -healthcheck  ask the service that this environment starts for /health;
                exit 0 on 200 within %v, otherwise print why and exit 1

Environment (unset and empty mean the default):
  HOST   address to listen on: an IP address or a name
         (default: all interfaces, IPv4 and IPv6)
  PORT   port to listen on, 0 to 65535; 0 takes a free one (default: %d)
  DEBUG  true or false; true also logs each successful /health (default: false)
  TZ     time zone of current_time and the log, such as Asia/Tokyo
         (default: the system's)
  SHUTDOWN_DELAY    after SIGTERM or SIGINT, how long /health answers 503 while
                    everything is still served (a duration; default: %v)
  SHUTDOWN_TIMEOUT  after that, how long requests in flight have to finish
                    (a duration; default: %v)
  GOMAXPROCS        threads that run Go code at once, 1 or more (default: the
                    container's CPU limit rounded up, or the machine's CPUs)
`

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run is the whole program. It returns the exit code, and returns when it is told to stop: by
// SIGINT, SIGTERM or the end of ctx. Several goroutines write to stdout at once.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet(serviceName, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // run itself says where help and errors go
	showVersion := flags.Bool("version", false, "")
	healthcheck := flags.Bool("healthcheck", false, "")

	err := flags.Parse(args)
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("argument %q: no arguments are accepted", flags.Arg(0))
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		printUsage(stdout)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\n\n", serviceName, err)
		printUsage(stderr)
		return exitUsage
	case *showVersion:
		fmt.Fprintln(stdout, versionLine())
		return exitOK
	}

	cfg, err := readConfig(getenv)
	if *healthcheck {
		if err == nil {
			err = checkHealth(ctx, cfg)
		}
		if err != nil {
			// Also for a bad environment value: 2 is reserved by Docker's HEALTHCHECK.
			fmt.Fprintf(stderr, "%s: not healthy: %v\n", serviceName, err)
			return exitFailure
		}
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", serviceName, err)
		return exitUsage
	}

	level := slog.LevelInfo
	if cfg.debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewJSONHandler(stdout, &slog.HandlerOptions{Level: level}))

	signal.Ignore(syscall.SIGPIPE) // whoever read the log may go; the service stays
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)

	listener, err := net.Listen(cfg.network(), cfg.address())
	if err != nil {
		fmt.Fprintf(stderr, "%s: HOST %q, PORT \"%d\": %v\n", serviceName, cfg.host, cfg.port, err)
		return exitFailure
	}
	root := os.DirFS("/")
	limits := readLimits(root)
	if limits.memory != nil && getenv("GOMEMLIMIT") == "" {
		// Go sees the machine's memory, not the container's, and would let garbage grow into its end.
		debug.SetMemoryLimit(*limits.memory / 4 * 3)
	}
	if !cfg.maxProcsSet {
		// Go sees the machine's CPUs, not the container's: with more threads running than the limit
		// pays for, the kernel stops them all for the rest of each period.
		runtime.GOMAXPROCS(limits.maxProcs(runtime.GOMAXPROCS(0)))
	}
	svc := newService(log, stdout, time.Now, cfg.location, cfg.timezone, readSystem(root, limits))
	return serve(ctx, signals, listener.(*net.TCPListener), svc, cfg, log)
}

func printUsage(w io.Writer) {
	fmt.Fprintf(w, usage, serviceName, healthcheckTimeout, defaultPort, defaultShutdownDelay, defaultShutdownTimeout)
}

// versionLine is what -version prints.
func versionLine() string {
	line := serviceName + " " + version
	if revision != "" {
		line += " (" + revision + ")"
	}
	return line + " " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
}

// config is what the environment says.
type config struct {
	host     string // empty: all interfaces
	port     uint16 // 0: any free port
	debug    bool
	location *time.Location
	timezone string // TZ as it was set; empty where it was not

	maxProcsSet bool // by GOMAXPROCS, which Go itself has read

	shutdownDelay   time.Duration // from the signal to the end of listening
	shutdownTimeout time.Duration // from there to the end of the last request
}

// address is host and port as net.Listen and net.Dial take them. To an empty or unspecified host
// they give a meaning that fits: listen on every interface, dial this machine.
func (c config) address() string {
	return net.JoinHostPort(c.host, strconv.Itoa(int(c.port)))
}

// network is what net.Listen and net.Dial take address for. With "tcp", 0.0.0.0 would be IPv6 too.
func (c config) network() string {
	if host, err := netip.ParseAddr(c.host); err == nil && host.Is4() {
		return "tcp4"
	}
	return "tcp"
}

// readConfig reads the environment. Its error names the variable, its value and what is accepted.
func readConfig(getenv func(string) string) (config, error) {
	cfg := config{host: getenv("HOST"), port: defaultPort, timezone: getenv("TZ")}

	const nameChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
	if _, err := netip.ParseAddr(cfg.host); err != nil && strings.Trim(cfg.host, nameChars) != "" {
		return config{}, fmt.Errorf("HOST %q: must be an IP address (no brackets, no port) or a host name", cfg.host)
	}
	if value := getenv("PORT"); value != "" {
		port, err := strconv.ParseUint(value, 10, 16)
		if err != nil {
			return config{}, fmt.Errorf("PORT %q: must be 0 to 65535", value)
		}
		cfg.port = uint16(port)
	}
	if value := getenv("DEBUG"); value != "" {
		debug, err := strconv.ParseBool(value)
		if err != nil {
			return config{}, fmt.Errorf("DEBUG %q: must be true or false (or 1, 0, t, f)", value)
		}
		cfg.debug = debug
	}
	if value := getenv("GOMAXPROCS"); value != "" {
		if n, err := strconv.ParseInt(value, 10, 32); err != nil || n < 1 {
			return config{}, fmt.Errorf("GOMAXPROCS %q: must be a whole number, 1 or more", value)
		}
		cfg.maxProcsSet = true
	}
	var err error
	if cfg.shutdownDelay, err = readDuration(getenv, "SHUTDOWN_DELAY", defaultShutdownDelay); err != nil {
		return config{}, err
	}
	if cfg.shutdownTimeout, err = readDuration(getenv, "SHUTDOWN_TIMEOUT", defaultShutdownTimeout); err != nil {
		return config{}, err
	}
	if cfg.timezone == "" {
		// Go would take an empty TZ for UTC. Here it means what an unset one does: the system's.
		os.Unsetenv("TZ")
		cfg.location = time.Local
		return cfg, nil
	}
	location, err := time.LoadLocation(cfg.timezone)
	if err != nil || location == time.Local { // "Local" is Go's name, not the tz database's
		return config{}, fmt.Errorf("TZ %q: must be a name from the tz database, such as UTC or Asia/Tokyo", cfg.timezone)
	}
	cfg.location = location
	return cfg, nil
}

// readDuration reads a duration of 0 or more.
func readDuration(getenv func(string) string, name string, otherwise time.Duration) (time.Duration, error) {
	value := getenv(name)
	if value == "" {
		return otherwise, nil
	}
	duration, err := time.ParseDuration(value)
	if err != nil || duration < 0 {
		return 0, fmt.Errorf("%s %q: must be a duration of 0s or more, such as 500ms or 3s", name, value)
	}
	return duration, nil
}

// serve answers on listener until it is told to stop by a signal or by the end of ctx. Then /health
// turns 503 and everything is still served for cfg.shutdownDelay; then the listener closes, and
// requests in flight have cfg.shutdownTimeout to finish. A second signal ends it at once. It returns
// the exit code.
func serve(ctx context.Context, signals <-chan os.Signal, listener *net.TCPListener, svc *service, cfg config, log *slog.Logger) int {
	server := &http.Server{
		Handler:                      svc,
		DisableGeneralOptionsHandler: true, // OPTIONS * gets the answer that every other unknown path gets
		ReadHeaderTimeout:            readHeaderTimeout,
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes - headerSlop,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	defer server.Close()
	limiter := limit(listener, maxConnections, log)
	limiter.attach(server)
	log.Info("listening", "address", listener.Addr().String(), "version", version, "revision", revision,
		"gomaxprocs", runtime.GOMAXPROCS(0))
	served := make(chan error, 1)
	go func() { served <- server.Serve(limiter) }()

	reason := "end of context"
	select {
	case err := <-served: // Serve retries what may pass; this did not
		log.Error("serving failed", "error", err.Error())
		return exitFailure
	case sig := <-signals:
		reason = sig.String()
	case <-ctx.Done():
	}

	// A log that nobody reads must not hold up the stop: no line is waited for longer than a second.
	say := func(level slog.Level, message string, args ...any) {
		said := make(chan struct{})
		go func() { log.Log(ctx, level, message, args...); close(said) }()
		select {
		case <-said:
		case <-time.After(time.Second):
		}
	}
	end := func(why string) int {
		if requests := limiter.inFlight(); requests > 0 {
			say(slog.LevelError, "stopped, with requests cut", "reason", why, "requests_cut", requests)
			return exitFailure
		}
		say(slog.LevelInfo, "stopped", "reason", why)
		return exitOK
	}
	svc.draining.Store(true)
	say(slog.LevelInfo, "draining", "reason", reason, "delay", cfg.shutdownDelay.String())
	select {
	case <-time.After(cfg.shutdownDelay):
	case sig := <-signals:
		return end("a second signal: " + sig.String())
	}

	// Not Server.Shutdown: in newer Go it drops a request whose header is still coming in.
	say(slog.LevelInfo, "stopping", "timeout", cfg.shutdownTimeout.String())
	limiter.Close()
	timeout := time.After(cfg.shutdownTimeout)
	for accepting := true; accepting || limiter.inFlight() > 0; {
		select {
		case <-served: // now every connection that was accepted is known
			served, accepting = nil, false
		case <-time.After(5 * time.Millisecond):
		case <-timeout:
			return end("the timeout")
		case sig := <-signals:
			return end("a second signal: " + sig.String())
		}
	}
	return end("all requests answered")
}

// checkHealth asks the service that cfg starts for /health. The error is nil when it answers 200
// within healthcheckTimeout. (http.Client would make the binary 450 KB larger.)
func checkHealth(ctx context.Context, cfg config) error {
	if cfg.port == 0 {
		return errors.New(`PORT "0": the port that was taken is not known here; must be 1 to 65535`)
	}
	deadline := time.Now().Add(healthcheckTimeout)
	dialer := net.Dialer{Deadline: deadline}
	conn, err := dialer.DialContext(ctx, cfg.network(), cfg.address())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	const request = "GET /health HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + serviceName + "-healthcheck\r\nConnection: close\r\n\r\n"
	if _, err := io.WriteString(conn, request); err != nil {
		return err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return fmt.Errorf("reading the answer of %s: %w", conn.RemoteAddr(), err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", conn.RemoteAddr(), response.Status)
	}
	return nil
}
