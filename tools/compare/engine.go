package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Bounds on what may hang.
const (
	createTimeout  = time.Minute      // making one container
	cleanupTimeout = 2 * time.Minute  // removing everything that was made
	stopTimeout    = 10 * time.Second // a command that was told to stop
)

// engine runs commands, and remembers how to remove what they make.
type engine struct {
	ctx      context.Context // ends when the program is interrupted
	docker   string          // the engine's command: docker or podman
	make     string          // the make that started this program
	folder   string          // holds every file that is made here
	name     string          // the start of every other name that is made here
	undo     [][]string      // commands of the engine
	progress io.Writer
	begun    time.Time       // of the step that is running
	layers   map[string]size // compressed, by their diff id
	err      error           // the first failure; no command is run after it, so that only the end must look at it
}

// fail keeps the first failure.
func (e *engine) fail(err error) {
	if e.err == nil {
		e.err = err
	}
}

// step says what is being done, and first how long the step before it took.
func (e *engine) step(format string, args ...any) {
	if e.err == nil {
		e.endStep()
		fmt.Fprintf(e.progress, "compare: "+format+" ... ", args...)
		e.begun = time.Now()
	}
}

func (e *engine) endStep() {
	if !e.begun.IsZero() {
		fmt.Fprintf(e.progress, "%.1f s\n", time.Since(e.begun).Seconds())
	}
	e.begun = time.Time{}
}

// run runs a command of the engine and returns what it prints.
func (e *engine) run(args ...string) string { return e.output(e.ctx, e.docker, args...) }

// output runs a command and returns what it prints, without the space around it. When the context
// ends, the command is stopped together with everything it has started.
func (e *engine) output(ctx context.Context, name string, args ...string) string {
	if e.err != nil {
		return ""
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = stopTimeout
	separate(cmd)
	if err := cmd.Run(); err != nil {
		e.fail(explain(strings.Join(cmd.Args, " ")+": "+err.Error(), stderr.String()))
		return ""
	}
	return strings.TrimSpace(stdout.String())
}

// create runs a command that makes a container. It is completed when the program is interrupted,
// because the engine completes it too and the container must exist when it is removed.
func (e *engine) create(container, command string, args ...string) {
	e.fail(e.ctx.Err())
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), createTimeout)
	defer cancel()
	e.output(ctx, e.docker, append([]string{command, "--name", container}, args...)...)
}

// build runs one of make's build targets in a folder.
func (e *engine) build(folder, kind, image string, variables ...string) {
	args := []string{"-C", folder, "build-" + kind, "DOCKER=" + e.docker, strings.ToUpper(kind) + "_IMAGE=" + image}
	e.output(e.ctx, e.make, append(args, variables...)...)
}

// edit replaces a text in one file of a copy of the project.
type edit struct{ file, old, new string }

// buildEdited builds an image from a copy of the project with some edits, and returns its name and
// how long the build took.
func (e *engine) buildEdited(kind, label string, edits ...edit) (string, seconds) {
	folder := filepath.Join(e.folder, kind+"-"+label)
	e.fail(os.Mkdir(folder, 0o755))
	files, _ := filepath.Glob("*")
	files = slices.DeleteFunc(files, func(name string) bool { return name == "bin" }) // bin is large, and not built from
	e.output(e.ctx, "cp", append(append([]string{"-R", ".dockerignore"}, files...), folder)...)
	for _, edit := range edits {
		path := filepath.Join(folder, edit.file)
		content, err := os.ReadFile(path)
		e.fail(err)
		if !bytes.Contains(content, []byte(edit.old)) {
			e.fail(fmt.Errorf("%s has no %q, which the comparison replaces", edit.file, edit.old))
		}
		e.fail(os.WriteFile(path, bytes.ReplaceAll(content, []byte(edit.old), []byte(edit.new)), 0o644))
	}
	image := e.name + "-" + kind + "-" + label
	e.undo = append(e.undo, []string{"rmi", "-f", image})
	begun := time.Now()
	e.build(folder, kind, image, "VERSION=latest", "REVISION=")
	return image, seconds(time.Since(begun).Seconds())
}

// archive has the engine write an archive, and a function read it.
func (e *engine) archive(read func(tarball.Opener) error, command ...string) {
	path := filepath.Join(e.folder, "archive.tar")
	defer os.Remove(path)
	if e.run(append(command, "-o", path)...); e.err == nil {
		e.fail(read(func() (io.ReadCloser, error) {
			archive, err := os.Open(path)
			// Compressing takes a while; an interruption ends it, because a closed file cannot be read.
			context.AfterFunc(e.ctx, func() { archive.Close() })
			return archive, err
		}))
	}
}

// cleanup removes every container, image and file that was made here. Where the measurement did not
// get so far, a command finds nothing to remove, and fails.
func (e *engine) cleanup() {
	e.endStep()
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	for i := len(e.undo) - 1; i >= 0; i-- {
		e.err = nil
		e.output(ctx, e.docker, e.undo[i]...)
	}
	os.RemoveAll(e.folder)
}

// refusals are what docker and podman say when they cannot work, and what helps.
var refusals = []struct {
	words *regexp.Regexp
	help  string
}{
	{regexp.MustCompile(`executable file not found`),
		"install Docker, or name another engine: make compare DOCKER=podman"},
	{regexp.MustCompile(`permission denied while trying to connect`),
		"let your user use Docker's socket (sudo usermod -aG docker $USER, then log in again), or use sudo make compare"},
	{regexp.MustCompile(`Cannot connect to the Docker daemon|failed to connect to the docker API`),
		"start Docker (sudo systemctl start docker, or Docker Desktop), or name another engine: make compare DOCKER=podman"},
	{regexp.MustCompile(`buildx component is missing|requires BuildKit|failed to parse platform`),
		"install BuildKit's client, the package docker-buildx-plugin or docker-buildx, or Docker 23 or newer"},
	{regexp.MustCompile(`no space left on device`),
		"make room: docker system df shows what Docker takes, docker builder prune frees some; TMPDIR=... names another temporary folder"},
	{regexp.MustCompile(`failed to resolve source metadata|failed to do request|Too Many Requests|toomanyrequests|` +
		`pull access denied|manifest unknown|did not resolve to an alias|initializing source docker:`),
		"see to the network or docker login, or name base images that can be had: make compare GO_IMAGE=... RUNTIME_IMAGE=..."},
}

// explain says what failed, in the command's own words, and what helps.
func explain(failure, words string) error {
	failure = strings.TrimSpace(failure + "\n" + words)
	for _, r := range refusals {
		if r.words.MatchString(failure) {
			return fmt.Errorf("%s\nWhat helps: %s", failure, r.help)
		}
	}
	return errors.New(failure)
}
