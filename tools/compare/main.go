// Compare builds the single-stage image, the multi-stage image on Alpine and the multi-stage image
// on scratch, measures all three from outside, and fails when a claim about them is false.
// It does not test the service itself; the tests do. The Makefile starts it, in the project's folder.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	os.Exit(run(context.Background(), os.Getenv, os.Stdout, os.Stderr))
}

// formats are the accepted values of FORMAT and what writes each.
var formats = map[string]func(*report) (string, error){
	"text": func(r *report) (string, error) { return text(r), nil },
	"json": func(r *report) (string, error) {
		written, err := json.MarshalIndent(r, "", "  ")
		return string(written) + "\n", err
	},
	"docs": writeDocs,
}

// run is the whole program. It returns the exit code: 0 if every claim is true, 1 if one is false,
// and 2 if something could not be measured.
func run(ctx context.Context, getenv func(string) string, stdout, stderr io.Writer) int {
	// A closed terminal sends SIGHUP. The signals stay caught until the end, because a second one
	// must not interrupt the cleanup.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()

	write := formats[getenv("FORMAT")]
	if write == nil {
		fmt.Fprintf(stderr, "compare: FORMAT %q: must be text or json\n", getenv("FORMAT"))
		return 2
	}
	report, err := measure(ctx, getenv, stderr)
	var written string
	if err == nil {
		written, err = write(report)
	}
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "compare: interrupted; what was made for the measurement has been removed")
		return 2
	case err != nil:
		fmt.Fprintln(stderr, "compare:", err)
		return 2
	}
	fmt.Fprint(stdout, written)
	if !report.holds() {
		fmt.Fprintln(stderr, "compare: a claim is false")
		return 1
	}
	return 0
}

// The measured part of a document stands between these two lines.
const beginMark, endMark = "<!-- begin make docs -->", "<!-- end make docs -->"

// writeDocs draws the chart, writes the figures in the documents that have some, and says
// what it left.
func writeDocs(r *report) (said string, err error) {
	documents := map[string]string{}
	if documents["docs/comparison.svg"], err = chart(r); err != nil {
		return "", err
	}
	short := table(comparison(r, "short"))
	for name, figures := range map[string]string{"docs/comparison.md": short + "\n" + text(r), "README.md": short} {
		old, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		before, rest, begun := strings.Cut(string(old), beginMark)
		_, after, ended := strings.Cut(rest, endMark)
		if begun && ended {
			documents[name] = before + beginMark + "\n\n" + figures + "\n" + endMark + after
		} else {
			said += fmt.Sprintf("%s is left as it is: it has no %q followed by %q\n", name, beginMark, endMark)
		}
	}
	for name, content := range documents {
		err = errors.Join(err, os.WriteFile(name, []byte(content), 0o644))
	}
	return said, err
}
