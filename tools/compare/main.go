// Compare builds the single-stage image, the multi-stage image on Alpine and the multi-stage image
// on scratch, measures all three from outside, and fails when a claim about them is false.
// It does not test the service itself; the tests do.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// Exit codes.
const (
	exitOK          = 0
	exitFalseClaim  = 1
	exitNotMeasured = 2
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// options is what the environment and the flags say.
type options struct {
	docker string            // the engine's command: docker or podman
	make   string            // the make that started this program
	format string            // one of formats
	docs   string            // the folder to write the two documents to; empty for none
	images map[string]string // the image's name for each kind
}

// formats are the accepted values of FORMAT and what writes each.
var formats = map[string]func(io.Writer, *report) error{
	"text":     writeText,
	"markdown": writeMarkdown,
	"json":     writeJSON,
	"svg":      writeSVG,
}

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	// A closed terminal sends SIGHUP. The signals stay caught until the end, because a second one
	// must not interrupt the cleanup.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()

	options, err := parse(args, getenv, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintln(stderr, "compare:", err)
		return exitNotMeasured
	}
	report, err := measure(ctx, options, stderr)
	if err == nil && options.docs != "" {
		err = writeDocs(options.docs, report)
	}
	if err == nil {
		err = formats[options.format](stdout, report)
	}
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "compare: interrupted; what was made for the measurement has been removed")
		return exitNotMeasured
	case err != nil:
		fmt.Fprintln(stderr, "compare:", err)
		return exitNotMeasured
	case !report.holds():
		fmt.Fprintln(stderr, "compare: a claim is false")
		return exitFalseClaim
	}
	return exitOK
}

func parse(args []string, getenv func(string) string, stderr io.Writer) (*options, error) {
	value := func(name, fallback string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return fallback
	}
	o := &options{
		docker: value("DOCKER", "docker"),
		make:   value("MAKE", "make"),
		format: value("FORMAT", "text"),
		images: map[string]string{
			single:  value("SINGLE_IMAGE", "devops-go-single"),
			multi:   value("MULTI_IMAGE", "devops-go-multi"),
			scratch: value("SCRATCH_IMAGE", "devops-go-scratch"),
		},
	}
	flags := flag.NewFlagSet("compare", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.docs, "docs", "", "also write comparison.svg and the measured part of comparison.md in this `folder`")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("argument %q: none is accepted", flags.Arg(0))
	}
	if formats[o.format] == nil {
		return nil, fmt.Errorf("FORMAT %q: must be text, markdown, json or svg", o.format)
	}
	return o, nil
}

// The measured part of comparison.md stands between these two lines.
const (
	beginMark = "<!-- begin make docs -->"
	endMark   = "<!-- end make docs -->"
)

// writeDocs writes the chart, and replaces the measured part of the prose.
func writeDocs(folder string, r *report) error {
	path := filepath.Join(folder, "comparison.md")
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var markdown, chart strings.Builder
	if err := writeMarkdown(&markdown, r); err != nil {
		return err
	}
	text, err := replaceMarked(string(old), markdown.String())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := writeSVG(&chart, r); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, "comparison.svg"), []byte(chart.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// replaceMarked puts the measured text between the two marks, and keeps all around them.
func replaceMarked(text, measured string) (string, error) {
	before, rest, begun := strings.Cut(text, beginMark)
	_, after, ended := strings.Cut(rest, endMark)
	if !begun || !ended {
		return "", fmt.Errorf("has no %q followed by %q", beginMark, endMark)
	}
	return before + beginMark + "\n\n" + strings.TrimSpace(measured) + "\n\n" + endMark + after, nil
}
