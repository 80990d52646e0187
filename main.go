// Devops-info-service is an HTTP service with two endpoints that answer in JSON:
//
//	GET /        what the service is, what it runs on, for how long, and who asked
//	GET /health  whether it can serve requests
//
// It is configured by environment variables; devops-info-service -h lists them.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
	_ "time/tzdata" // every time zone, even if the machine has no zone files

	"devops-info-service/internal/config"
	"devops-info-service/internal/healthcheck"
	"devops-info-service/internal/logbuffer"
	"devops-info-service/internal/platform"
	"devops-info-service/internal/server"
)

// Set by the linker: -ldflags "-X main.version=… -X main.revision=…".
var (
	version  = "1.0.0"
	revision = "" // the commit; empty if unknown
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1 // could not listen or go on serving, requests were cut, or not healthy
	exitUsage   = 2 // a bad flag, argument or environment value
)

// logTimeout bounds the wait for the last log lines, because a log that nobody reads must not prevent the stop.
const logTimeout = 500 * time.Millisecond

const usage = `Usage: %s [flag]

Answers GET / and GET /health in JSON over HTTP.

Flags:
  -h            print this help and exit
  -version      print version, revision if known, Go version, OS/architecture
  -healthcheck  request /health from the service that this environment configures;
                exit 0 on 200 within %v, otherwise print why and exit 1

%s`

func main() {
	os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr, make(chan os.Signal, 2)))
}

// run is the whole program and returns its exit code. It stops when SIGINT or SIGTERM arrives on signals.
func run(args []string, getenv func(string) string, stdout, stderr io.Writer, signals chan os.Signal) int {
	flags := flag.NewFlagSet(serviceName, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // help and errors are printed below
	showVersion := flags.Bool("version", false, "")
	checkHealth := flags.Bool("healthcheck", false, "")
	help := fmt.Sprintf(usage, serviceName, healthcheck.Timeout, config.Help())

	err := flags.Parse(args)
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("argument %q: no arguments are accepted", flags.Arg(0))
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, help)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\n\n%s", serviceName, err, help)
		return exitUsage
	case *showVersion:
		fmt.Fprintln(stdout, versionLine())
		return exitOK
	}

	cfg, err := config.Read(getenv)
	if err == nil && *checkHealth {
		err = check(cfg)
	}
	switch {
	case *checkHealth && err != nil:
		// Not exitUsage, even for a bad environment value, because Docker reserves 2 in a HEALTHCHECK.
		fmt.Fprintf(stderr, "%s: not healthy: %v\n", serviceName, err)
		return exitFailure
	case *checkHealth:
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\n", serviceName, err)
		return exitUsage
	}
	return serve(cfg, stdout, stderr, signals)
}

// check asks the service that cfg configures whether it is healthy.
func check(cfg config.Config) error {
	if cfg.Port == 0 {
		return errors.New(`PORT "0": -healthcheck cannot know which port the service took; must be 1 to 65535`)
	}
	return healthcheck.Check(cfg.Network(), cfg.Address())
}

// serve listens and serves until the service is told to stop. It returns the exit code.
func serve(cfg config.Config, stdout, stderr io.Writer, signals chan os.Signal) int {
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	signal.Ignore(syscall.SIGPIPE) // otherwise, a write to a log whose reader has gone kills the service

	root := os.DirFS("/")
	limits := platform.ReadLimits(root)
	limits.TuneRuntime(cfg.GOMAXPROCSSet, cfg.GOMEMLIMITSet)
	maxConnections := server.MaxConnections(limits.Memory, limits.Files)

	listener, err := server.Listen(cfg.Network(), cfg.Address())
	if err != nil {
		fmt.Fprintf(stderr, "%s: HOST %q, PORT \"%d\": %v%s\n", serviceName, cfg.Host, cfg.Port, err, advice(err))
		return exitFailure
	}

	output := logbuffer.New(stdout)
	defer output.Close(logTimeout)
	os.Unsetenv("TZ") // so that time.Local is the system's zone if TZ is empty, which Go takes as UTC
	if cfg.Location != time.Local {
		time.Local = cfg.Location // which Go sets from TZ itself, but not on Windows
	}
	log := slog.New(slog.NewJSONHandler(output, &slog.HandlerOptions{Level: cfg.LogLevel}))

	svc := &service{log: log, version: version, now: time.Now, start: time.Now(), system: newSystemInfo(root, limits)}
	svc.handle("/", "Service information", svc.info)
	svc.handle("/health", "Health check", svc.health)

	log.Info("listening", "address", listener.Addr().String(), "version", version, "revision", revision,
		"gomaxprocs", runtime.GOMAXPROCS(0), "max_connections", maxConnections)
	err = server.Server{
		Handler:         svc,
		Log:             log,
		MaxConnections:  maxConnections,
		Draining:        &svc.draining,
		ShutdownDelay:   cfg.ShutdownDelay,
		ShutdownTimeout: cfg.ShutdownTimeout,
	}.Run(listener, signals)
	if err != nil {
		return exitFailure // the log says why
	}
	return exitOK
}

// advice is what to do about an error of server.Listen: take another port, if this one is taken or not for ordinary users.
func advice(err error) string {
	const takenOnWindows, notAllowedOnWindows = syscall.Errno(10048), syscall.Errno(10013) // WSAEADDRINUSE, WSAEACCES
	for _, refused := range []error{syscall.EADDRINUSE, syscall.EACCES, takenOnWindows, notAllowedOnWindows} {
		if errors.Is(err, refused) {
			return "; choose another PORT, such as 8080"
		}
	}
	return ""
}

// versionLine is what -version prints.
func versionLine() string {
	line := serviceName + " " + version
	if revision != "" {
		line += " (" + revision + ")"
	}
	return line + " " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
}
