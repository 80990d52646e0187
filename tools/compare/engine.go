package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// Bounds on what may hang.
const (
	createTimeout  = time.Minute      // starting one container
	cleanupTimeout = 2 * time.Minute  // removing everything that was made
	stopTimeout    = 10 * time.Second // a command that was told to stop
)

// engine runs commands, and keeps the names of everything it makes, so that it can be removed.
type engine struct {
	docker     string
	make       string
	name       string // the start of every name that is made here
	folder     string // holds every file that is made here
	containers []string
	images     []string
	progress   io.Writer
}

func newEngine(o *options, progress io.Writer) (*engine, error) {
	random := make([]byte, 4)
	if _, err := rand.Read(random); err != nil {
		return nil, err
	}
	name := "devops-compare-" + hex.EncodeToString(random)
	folder, err := os.MkdirTemp("", name+"-")
	return &engine{docker: o.docker, make: o.make, name: name, folder: folder, progress: progress}, err
}

// step says on standard error what is being done.
func (e *engine) step(format string, args ...any) {
	fmt.Fprintf(e.progress, "compare: "+format+"\n", args...)
}

// command prepares a command that is stopped together with everything it has started.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	// With a process group of its own, Ctrl-C in the terminal reaches this program only, which then
	// decides what is stopped and what is completed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=1", "BUILDAH_FORMAT=docker")
	return cmd
}

// explain names the command that failed and what it printed.
func explain(cmd *exec.Cmd, err error, output string) error {
	if err == nil {
		return nil
	}
	if output = strings.TrimSpace(output); output != "" {
		output = "\n" + output
	}
	return fmt.Errorf("%s: %w%s", strings.Join(cmd.Args, " "), err, output)
}

// output runs a command of the engine and returns what it prints, without the space around it.
func (e *engine) output(ctx context.Context, args ...string) (string, error) {
	return e.outputOf(ctx, nil, args...)
}

// outputOf is output for a command that reads its standard input.
func (e *engine) outputOf(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := command(ctx, e.docker, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := cmd.Run()
	return strings.TrimSpace(stdout.String()), explain(cmd, err, stderr.String())
}

// read runs a command of the engine whose output is too long to keep, and hands it to a function.
func (e *engine) read(ctx context.Context, reader func(io.Reader) error, args ...string) error {
	var stderr bytes.Buffer
	cmd := command(ctx, e.docker, args...)
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := reader(stdout)
	io.Copy(io.Discard, stdout) // otherwise a command that still writes would never end
	if err := cmd.Wait(); err != nil {
		return explain(cmd, err, stderr.String())
	}
	return readErr
}

// create runs a command that makes a container. It is completed when the program is interrupted,
// because the engine completes it too and the container must exist when it is removed.
func (e *engine) create(ctx context.Context, container string, args ...string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e.containers = append(e.containers, container)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), createTimeout)
	defer cancel()
	_, err := e.output(ctx, args...)
	return err
}

func (e *engine) removeContainer(ctx context.Context, container string) error {
	_, err := e.output(ctx, "rm", "-f", container)
	return err
}

// build runs one of make's build targets in a folder.
func (e *engine) build(ctx context.Context, folder, target string, variables ...string) error {
	args := append([]string{"-C", folder, target, "DOCKER=" + e.docker}, variables...)
	cmd := command(ctx, e.make, args...)
	output, err := cmd.CombinedOutput()
	return explain(cmd, err, string(output))
}

// buildCopy builds an image of one kind from a copy of the project, and returns its name and how
// long the build took.
func (e *engine) buildCopy(ctx context.Context, folder, kind string, variables ...string) (string, time.Duration, error) {
	image := e.name + "-" + kind
	e.images = append(e.images, image+":latest", image+":measured")
	variables = append(variables, strings.ToUpper(kind)+"_IMAGE="+image, "VERSION=measured", "REVISION=")
	begun := time.Now()
	err := e.build(ctx, folder, "build-"+kind, variables...)
	return image + ":latest", time.Since(begun), err
}

// removeImages removes all images that were made here, with a context of its own where the
// program's has ended.
func (e *engine) removeImages(ctx context.Context) {
	for _, image := range e.images {
		e.output(ctx, "rmi", "-f", image) // fails where the build did not get so far
	}
	e.images = nil
}

// cleanup removes every container, image and file that was made here, one by one, because podman
// removes none of several when one does not exist.
func (e *engine) cleanup() {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	for _, container := range e.containers {
		e.removeContainer(ctx, container) // fails where it has been removed already
	}
	e.removeImages(ctx)
	os.RemoveAll(e.folder)
}

// copyProject copies the project's folder, without what git and make keep in it, to a new folder.
func (e *engine) copyProject(project, name string) (string, error) {
	target := filepath.Join(e.folder, name)
	return target, filepath.WalkDir(project, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(project, path)
		if err != nil {
			return err
		}
		if relative == ".git" || relative == "bin" { // in a worktree of git, .git is a file
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		copied := filepath.Join(target, relative)
		info, err := entry.Info()
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			return os.MkdirAll(copied, 0o755)
		case !entry.Type().IsRegular():
			return fmt.Errorf("%s: is neither a file nor a folder", path)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(copied, content, info.Mode().Perm())
	})
}

var errNotFound = errors.New("nothing to replace was found")

// edit replaces in a file what a pattern matches; it fails where the pattern matches nothing.
func edit(path string, pattern *regexp.Regexp, replacement string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !pattern.Match(old) {
		return fmt.Errorf("%s: %w for %q", path, errNotFound, pattern)
	}
	return os.WriteFile(path, pattern.ReplaceAll(old, []byte(replacement)), 0o644)
}
