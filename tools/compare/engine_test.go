package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRefusals has what docker and podman really said.
func TestRefusals(t *testing.T) {
	const ps, build = "docker ps -q: exit status 1", "make -C . build-multi: exit status 2"
	for _, test := range []struct{ name, failure, words, help string }{
		{"no docker", `docker ps -q: exec: "docker": executable file not found in $PATH`, "", "install Docker"},
		{"no daemon", ps, "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?", "start Docker"},
		{"no daemon, Docker 29", ps, "failed to connect to the docker API at unix:///var/run/docker.sock; check if the path is correct and if the daemon is running: dial unix /var/run/docker.sock: connect: no such file or directory", "start Docker"},
		{"the socket's permission", ps, `permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: Get "http://%2Fvar%2Frun%2Fdocker.sock/v1.50/containers/json": dial unix /var/run/docker.sock: connect: permission denied`, "usermod -aG docker"},
		{"no buildx", build, "ERROR: BuildKit is enabled but the buildx component is missing or broken.\n       Install the buildx component to build images with BuildKit:\n       https://docs.docker.com/go/buildx/", "docker-buildx-plugin"},
		{"the builder before BuildKit", build, `failed to parse platform : "" is an invalid component of "": platform specifier component must match "^[A-Za-z0-9_-]+$": invalid argument`, "BuildKit"},
		{"no network", build, `ERROR: failed to build: failed to solve: failed to do request: Head "https://registry-1.docker.io/v2/library/golang/manifests/1.21-alpine": dial tcp: lookup registry-1.docker.io on 127.0.0.53:53: no such host`, "GO_IMAGE="},
		{"no such image", build, "ERROR: failed to solve: golang:9: failed to resolve source metadata for docker.io/library/golang:9: docker.io/library/golang:9: not found", "GO_IMAGE="},
		{"a rate limit", build, "ERROR: failed to solve: golang:1.21-alpine: failed to copy: httpReadSeeker: failed open: unexpected status code: 429 Too Many Requests - Server message: toomanyrequests: You have reached your unauthenticated pull rate limit.", "docker login"},
		{"podman's short names", build, `Error: creating build container: short-name "golang:1.21-alpine" did not resolve to an alias and no unqualified-search registries are defined in "/etc/containers/registries.conf"`, "GO_IMAGE="},
		{"a full disk", build, "ERROR: failed to solve: ResourceExhausted: failed to read dockerfile: failed to create temp dir: mkdir /var/lib/docker/tmp/buildkit-mount2667628103: no space left on device", "docker builder prune"},
		{"a mistake in the source", build, "#4 [internal] load metadata for docker.io/library/golang:1.21-alpine\n#9 ERROR: process \"/bin/sh -c go build\" did not complete successfully: exit code: 1", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := explain(test.failure, test.words).Error()
			said, help, helps := strings.Cut(got, "\nWhat helps: ")
			if said != strings.TrimSpace(test.failure+"\n"+test.words) || helps != (test.help != "") || !strings.Contains(help, test.help) {
				t.Errorf("%s\nwant the command, its words, and help with %q", got, test.help)
			}
		})
	}
}

func TestNotMeasured(t *testing.T) {
	for _, test := range []struct{ format, docker, want string }{
		{"yaml", "true", `compare: FORMAT "yaml": must be text or json`},
		{"text", "false", "compare: false ps -q: exit status 1"},
	} {
		var stdout, stderr strings.Builder
		env := map[string]string{"FORMAT": test.format, "DOCKER": test.docker, "MAKE": "true"}
		code := run(context.Background(), func(name string) string { return env[name] }, &stdout, &stderr)
		if got := strings.TrimSpace(stderr.String()); code != 2 || got != test.want || stdout.Len() > 0 {
			t.Errorf("exit code %d, %q and %q, want 2 and %q", code, stdout.String(), got, test.want)
		}
	}
}

// fakeEngine is an engine whose commands write their arguments to a file, and hang if told to.
func fakeEngine(t *testing.T, ctx context.Context) (*engine, func() string) {
	t.Helper()
	folder := t.TempDir()
	log, docker := filepath.Join(folder, "log"), filepath.Join(folder, "docker")
	script := "#!/bin/sh\necho \"$*\" >>'" + log + "'\ncase $1 in hang) sleep 60 ;; esac\n"
	if err := os.WriteFile(docker, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	made := filepath.Join(folder, "NAME")
	os.Mkdir(made, 0o700)
	return &engine{ctx: ctx, docker: docker, make: docker, folder: made, name: "NAME", progress: io.Discard}, func() string {
		content, _ := os.ReadFile(log)
		return string(content)
	}
}

func TestCleanup(t *testing.T) {
	here, _ := os.Getwd()
	defer os.Chdir(here)
	os.Chdir(t.TempDir())
	os.WriteFile("Dockerfile", []byte("go build -s -w -X a=b"), 0o600)
	os.WriteFile(".dockerignore", nil, 0o600)
	os.Mkdir("bin", 0o700)

	e, log := fakeEngine(t, context.Background())
	e.readFiles(&figures{}, "a", "image")
	e.err = nil // no archive was written
	e.buildEdited(multi, "cold", edit{"Dockerfile", "-s -w ", ""})
	copied := filepath.Join(e.folder, "multi-cold")
	content, _ := os.ReadFile(filepath.Join(copied, "Dockerfile"))
	if _, err := os.Stat(filepath.Join(copied, "bin")); e.err != nil || err == nil || string(content) != "go build -X a=b" {
		t.Errorf("%v; bin: %v; the Dockerfile is %q", e.err, err, content)
	}
	if e.buildEdited(multi, "other", edit{"Dockerfile", "--mount", ""}); e.err == nil {
		t.Error("a text that is not there is no failure")
	}
	e.cleanup()
	want := "create --name NAME-a image\nexport NAME-a -o " + e.folder + "/archive.tar\n" +
		"-C " + copied + " build-multi DOCKER=" + e.docker + " MULTI_IMAGE=NAME-multi-cold VERSION=latest REVISION=\n" +
		"rmi -f NAME-multi-other\nrmi -f NAME-multi-cold\nrm -f NAME-a\n"
	if got := log(); got != want {
		t.Errorf("commands\n%swant\n%s", got, want)
	}
	if _, err := os.Stat(e.folder); err == nil {
		t.Error("the folder is still there")
	}
}

func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	e, log := fakeEngine(t, ctx)
	begun := time.Now()
	if e.run("hang"); e.err == nil || time.Since(begun) > 5*time.Second {
		t.Errorf("%v after %v; the command and its child must have been stopped at once", e.err, time.Since(begun))
	}
	e.err = nil
	if e.create("late", "run", "image"); !errors.Is(e.err, context.DeadlineExceeded) || strings.Contains(log(), "late") {
		t.Errorf("a container was made after the interruption: %v, %s", e.err, log())
	}
}

func TestParseSize(t *testing.T) {
	for printed, want := range map[string]size{
		"1.5MiB / 2GiB": 1572864, "1.5MB / 2GB": 1500000, "512B / 0B": 512, "12.4 MB": 12400000, "274MB": 274000000, "0B": 0,
		"15": -1, "-- / --": -1, "15XB": -1, "": -1,
	} {
		e := &engine{}
		if got := e.parseSize(printed); (e.err != nil) != (want < 0) || want >= 0 && got != want {
			t.Errorf("%q: %d, %v, want %d", printed, got, e.err, want)
		}
	}
}
