//go:build release

// Package release_test rehearses a release: it pushes the image of the current commit to a registry on this
// machine with make release, pulls it back, and checks what arrived. It takes the image's name in that registry
// from REGISTRY and the builder from BUILDX_BUILDER. It does not test the service, which test/image does.
package release_test

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

const (
	version    = "1.2.3"
	preRelease = "1.2.4-rc.1"
	binaryPath = "usr/local/bin/devops-info-service"
	source     = "https://example.com/owner/devops-info-service"
)

// rehearsal is a clone of the current commit, and the registry that it is released to.
type rehearsal struct {
	registry
	repository string // the image's name without a tag
	dir        string // of the clone
	commit     string
	time       time.Time // of the commit
}

func newRehearsal(t *testing.T) rehearsal {
	t.Helper()
	root := harness.Root(t)
	if changes := output(t, root, nil, "git", "status", "--porcelain"); changes != "" {
		t.Logf("what is rehearsed is the last commit, without these changes:\n%s", changes)
	}
	r := rehearsal{repository: os.Getenv("REGISTRY"), dir: filepath.Join(t.TempDir(), "clone")}
	if r.repository == "" {
		r.repository = "localhost:5000/devops-info-service"
	}
	r.registry = newRegistry(t, r.repository)
	output(t, root, nil, "git", "clone", "-q", ".", r.dir)
	// The form of address that git uses, which a release turns into the one that people use.
	output(t, r.dir, nil, "git", "remote", "set-url", "origin", "git@example.com:owner/devops-info-service.git")
	r.commit = output(t, r.dir, nil, "git", "rev-parse", "HEAD")
	seconds, err := strconv.ParseInt(output(t, r.dir, nil, "git", "log", "-1", "--format=%ct"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	r.time = time.Unix(seconds, 0).UTC()
	return r
}

// environ is this process's environment with the variables given, and without those that decide what is
// released. Make's own are among them because they hold the variables that make test-release was given.
func environ(variables ...string) []string {
	var env []string
	for _, variable := range os.Environ() {
		switch name, _, _ := strings.Cut(variable, "="); name {
		case "REGISTRY", "VERSION", "REVISION", "VARIANT", "SOURCE", "SOURCE_DATE_EPOCH", "NO_CACHE",
			"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL":
		default:
			env = append(env, variable)
		}
	}
	return append(env, variables...)
}

// output runs a command in a folder and returns what it prints, without the space around it.
func output(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	command := exec.Command(name, args...)
	command.Dir, command.Env, command.Stderr = dir, env, &stderr
	stdout, err := command.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, stdout, stderr.Bytes())
	}
	return strings.TrimSpace(string(stdout))
}

// release runs make release and returns the digest of the index that it pushed.
func (r rehearsal) release(t *testing.T, tag string, variables ...string) string {
	t.Helper()
	start := time.Now()
	printed := output(t, r.dir, environ(append(variables, "REGISTRY="+r.repository)...), "make", "--no-print-directory", "release")
	t.Logf("%s (%.0f s)", printed, time.Since(start).Seconds())
	reference, digest, _ := strings.Cut(printed, "@")
	if want := r.repository + ":" + tag; reference != want {
		t.Fatalf("released %q, want %s@DIGEST and nothing else", printed, want)
	}
	return digest
}

func TestRelease(t *testing.T) {
	r := newRehearsal(t)
	digest := r.release(t, version, "VERSION="+version)
	index, images := r.images(t, digest)
	amd64, arm64 := images["linux/amd64"], images["linux/arm64"]

	t.Run("index", func(t *testing.T) {
		if index.MediaType != indexType {
			t.Errorf("media type: got %q, want %q", index.MediaType, indexType)
		}
		if amd64.digest == "" || arm64.digest == "" || len(images) != 2 {
			t.Fatalf("images: got %v, want linux/amd64 and linux/arm64", images)
		}
		for platform, img := range images {
			if img.MediaType != manifestType {
				t.Errorf("%s: media type: got %q, want %q", platform, img.MediaType, manifestType)
			}
		}
	})
	t.Run("tags", func(t *testing.T) {
		for _, tag := range []string{"1.2.3", "1.2", "latest"} {
			if got := r.digest(t, tag); got != digest {
				t.Errorf("%s: got %q, want %s", tag, got, digest)
			}
		}
	})
	t.Run("labels and annotations", func(t *testing.T) {
		want := map[string]string{ // and no licenses, because there is no LICENSE file
			"org.opencontainers.image.title":       "devops-info-service",
			"org.opencontainers.image.description": "DevOps course info service",
			"org.opencontainers.image.version":     version,
			"org.opencontainers.image.revision":    r.commit,
			"org.opencontainers.image.source":      source,
			"org.opencontainers.image.created":     r.time.Format(time.RFC3339),
		}
		check := func(what string, got map[string]string) {
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: got %v, want %v", what, got, want)
			}
		}
		check("annotations of the index", index.Annotations)
		for platform, img := range images {
			check("annotations of "+platform, img.Annotations)
			check("labels of "+platform, img.config.Config.Labels)
		}
	})
	t.Run("user", func(t *testing.T) {
		for platform, img := range images {
			if got := img.config.Config.User; got != "10001:10001" {
				t.Errorf("%s: got %q, want 10001:10001", platform, got)
			}
		}
	})
	t.Run("SBOM", func(t *testing.T) {
		for platform, img := range images {
			r.checkSBOM(t, platform, img)
		}
	})
	t.Run("provenance", func(t *testing.T) {
		for platform, img := range images {
			r.checkProvenance(t, platform, img)
		}
	})
	t.Run("the pulled image in the engine", func(t *testing.T) {
		container := r.run(t, digest)
		for _, flag := range []string{"-u", "-g"} {
			if got := harness.Must(t, "exec", container, "id", flag); got != "10001" {
				t.Errorf("id %s: got %s, want 10001", flag, got)
			}
		}
	})
	t.Run("the arm64 binary under qemu", func(t *testing.T) {
		runARM64(t, r.file(t, arm64, binaryPath))
	})
	t.Run("the binary of make build-multi", func(t *testing.T) {
		if !bytes.Equal(r.file(t, amd64, binaryPath), r.buildMulti(t)) {
			t.Error("the released binary and the one of make build-multi differ")
		}
	})
	t.Run("a second build gives the same images", func(t *testing.T) {
		_, again := r.images(t, r.release(t, version, "VERSION="+version, "NO_CACHE=true"))
		for platform, img := range images {
			if again[platform].digest != img.digest {
				t.Errorf("%s: got %s, then %s", platform, img.digest, again[platform].digest)
			} else {
				t.Logf("%s: %s twice", platform, img.digest)
			}
		}
	})
	t.Run("a pre-release gets only its own tag", func(t *testing.T) {
		tags := []string{"1.2", "latest"}
		var before []string
		for _, tag := range tags {
			before = append(before, r.digest(t, tag))
		}
		digest := r.release(t, preRelease, "VERSION="+preRelease)
		if got := r.digest(t, preRelease); got != digest {
			t.Errorf("%s: got %q, want %s", preRelease, got, digest)
		}
		for i, tag := range tags {
			if got := r.digest(t, tag); got != before[i] {
				t.Errorf("%s: moved from %s to %q", tag, before[i], got)
			}
		}
	})
	t.Run("variant scratch", func(t *testing.T) {
		latest := r.digest(t, "latest")
		digest := r.release(t, version+"-scratch", "VERSION="+version, "VARIANT=scratch")
		for _, tag := range []string{"1.2.3-scratch", "1.2-scratch", "latest-scratch"} {
			if got := r.digest(t, tag); got != digest {
				t.Errorf("%s: got %q, want %s", tag, got, digest)
			}
		}
		if got := r.digest(t, "latest"); got != latest {
			t.Errorf("latest: moved from %s to %q", latest, got)
		}
		_, images := r.images(t, digest)
		if got := len(images["linux/amd64"].Layers); got != 1 { // the account and the binary
			t.Errorf("layers: got %d, want 1, because there is no base image", got)
		}
		if !bytes.Equal(r.file(t, images["linux/amd64"], binaryPath), r.file(t, amd64, binaryPath)) {
			t.Error("its binary and that of the default variant differ")
		}
		r.run(t, digest)
	})
}

// checkSBOM expects the service and Go's standard library, with the versions that the binary itself names.
func (r rehearsal) checkSBOM(t *testing.T, platform string, img image) {
	info, err := buildinfo.Read(bytes.NewReader(r.file(t, img, binaryPath)))
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		SPDXVersion string
		Packages    []struct{ Name, VersionInfo string }
	}
	r.statement(t, img, "https://spdx.dev/Document", &document)
	if !strings.HasPrefix(document.SPDXVersion, "SPDX-2.") {
		t.Errorf("%s: version of SPDX: got %q, want SPDX-2.x", platform, document.SPDXVersion)
	}
	versions := make(map[string]string)
	for _, p := range document.Packages {
		versions[p.Name] = p.VersionInfo
	}
	for name, want := range map[string]string{"devops-info-service": "v" + version, "stdlib": info.GoVersion} {
		if got := versions[name]; got != want {
			t.Errorf("%s: %s: got %q, want %q", platform, name, got, want)
		}
	}
}

// checkProvenance expects the commit, and the build's definition and arguments, which only mode=max records.
func (r rehearsal) checkProvenance(t *testing.T, platform string, img image) {
	var provenance struct {
		BuildDefinition struct {
			ExternalParameters struct {
				Request struct{ Args map[string]string }
			}
			InternalParameters struct {
				BuildConfig struct{ LLBDefinition []json.RawMessage }
			}
		}
		RunDetails struct {
			Metadata struct {
				BuildKit struct{ VCS map[string]string } `json:"buildkit_metadata"`
			}
		}
	}
	r.statement(t, img, "https://slsa.dev/provenance/v1", &provenance)
	if got := provenance.RunDetails.Metadata.BuildKit.VCS["revision"]; got != r.commit {
		t.Errorf("%s: revision of the source: got %q, want %s", platform, got, r.commit)
	}
	if got := provenance.BuildDefinition.ExternalParameters.Request.Args["build-arg:REVISION"]; got != r.commit {
		t.Errorf("%s: argument REVISION: got %q, want %s", platform, got, r.commit)
	}
	if len(provenance.BuildDefinition.InternalParameters.BuildConfig.LLBDefinition) == 0 {
		t.Errorf("%s: no definition of the build, so the mode is not max", platform)
	}
}

// run pulls the image by its digest, starts it, expects 200 from both endpoints and returns the container.
func (r rehearsal) run(t *testing.T, digest string) (container string) {
	t.Helper()
	reference := r.repository + "@" + digest
	harness.Must(t, "pull", "-q", reference)
	t.Cleanup(func() { harness.Must(t, "rmi", reference) })
	container, address := harness.Published(t, reference)
	for _, path := range []string{"/health", "/"} {
		if response, _ := harness.Get(t, address, path); response.StatusCode != http.StatusOK {
			t.Errorf("GET %s: got %s, want 200", path, response.Status)
		}
	}
	return container
}

// runARM64 starts the binary under an emulator of the processor and expects 200 from /health.
func runARM64(t *testing.T, binary []byte) {
	const emulator = "qemu-aarch64-static"
	if _, err := exec.LookPath(emulator); err != nil {
		t.Fatalf("%v; it is in Debian's and Ubuntu's package: apt-get install qemu-user-static", err)
	}
	path := filepath.Join(t.TempDir(), "devops-info-service")
	if err := os.WriteFile(path, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := output(t, ".", nil, emulator, path, "-version"); !strings.HasSuffix(got, " linux/arm64") {
		t.Fatalf("-version: got %q, want linux/arm64", got)
	}
	var log harness.Buffer
	service := exec.Command(emulator, path)
	service.Env, service.Stdout, service.Stderr = []string{"PORT=0"}, &log, os.Stderr
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		service.Process.Kill()
		service.Wait()
	}()
	harness.WaitForHealth(t, "127.0.0.1:"+harness.WaitForPort(t, &log))
}

// buildMulti returns the binary that make build-multi gives for the same commit and version, on the engine's
// own builder.
func (r rehearsal) buildMulti(t *testing.T) []byte {
	name := harness.Unique()
	output(t, r.dir, environ("BUILDX_BUILDER="), "make", "build-multi", "VERSION="+version, "MULTI_IMAGE="+name)
	defer harness.Must(t, "rmi", name+":"+version, name+":latest")
	container := harness.Must(t, "create", name+":"+version)
	defer harness.Must(t, "rm", container)
	path := filepath.Join(t.TempDir(), "devops-info-service")
	harness.Must(t, "cp", container+":/"+binaryPath, path)
	binary, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// No registry here has golang:alpine and alpine:latest, so for this variant the tests check only the plan.
func TestPlanOfVariantCurrent(t *testing.T) {
	r := newRehearsal(t)
	for _, test := range []struct {
		name, version string
		tags          []string
	}{
		{"release", version, []string{"1.2.3-current", "1.2-current", "latest-current"}},
		{"pre-release", preRelease, []string{preRelease + "-current"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			printed := output(t, r.dir, environ("REGISTRY="+r.repository, "VERSION="+test.version),
				harness.Engine(), "buildx", "bake", "-f", "deploy/docker-bake.hcl", "--print", "current")
			var plan struct {
				Target map[string]struct {
					Args      map[string]string
					Tags      []string
					Platforms []string
				}
			}
			if err := json.Unmarshal([]byte(printed), &plan); err != nil {
				t.Fatalf("%v: %s", err, printed)
			}
			target := plan.Target["current"]
			if got, want := target.Args["GO_IMAGE"], "golang:alpine"; got != want {
				t.Errorf("GO_IMAGE: got %q, want %q", got, want)
			}
			if got, want := target.Args["RUNTIME_IMAGE"], "alpine:latest"; got != want {
				t.Errorf("RUNTIME_IMAGE: got %q, want %q", got, want)
			}
			if got, want := target.Platforms, []string{"linux/amd64", "linux/arm64"}; !reflect.DeepEqual(got, want) {
				t.Errorf("platforms: got %v, want %v", got, want)
			}
			var want []string
			for _, tag := range test.tags {
				want = append(want, r.repository+":"+tag)
			}
			if !reflect.DeepEqual(target.Tags, want) {
				t.Errorf("tags: got %v, want %v", target.Tags, want)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	r := newRehearsal(t)
	dirty := newRehearsal(t)
	if err := os.WriteFile(filepath.Join(dirty.dir, "forgotten.go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// In place of docker: leaves a file behind, which shows that something would have been built.
	started := filepath.Join(t.TempDir(), "started")
	docker := filepath.Join(t.TempDir(), "docker")
	if err := os.WriteFile(docker, []byte("#!/bin/sh\n: >"+started+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	const image = "REGISTRY=registry.example/devops-info-service"
	for _, test := range []struct {
		name      string
		dir       string
		variables []string
		want      string // in the one line; empty if the release must begin
	}{
		{"release", r.dir, []string{image, "VERSION=1.2.3"}, ""},
		{"pre-release", r.dir, []string{image, "VERSION=1.2.3-rc.1"}, ""},
		{"variant", r.dir, []string{image, "VERSION=1.2.3", "VARIANT=current"}, ""},
		{"no registry", r.dir, []string{"VERSION=1.2.3"}, "REGISTRY is not set"},
		{"no version", r.dir, []string{image}, "VERSION is not set"},
		{"version with v", r.dir, []string{image, "VERSION=v1.2.3"}, `"v1.2.3": leave out the v`},
		{"two numbers", r.dir, []string{image, "VERSION=1.2"}, `"1.2": must be a semantic version`},
		{"leading zero", r.dir, []string{image, "VERSION=1.02.3"}, `"1.02.3": must be a semantic version`},
		{"leading zero in a pre-release", r.dir, []string{image, "VERSION=1.2.3-rc.01"}, `"1.2.3-rc.01": must be a semantic version`},
		{"empty pre-release", r.dir, []string{image, "VERSION=1.2.3-"}, `"1.2.3-": must be a semantic version`},
		{"build metadata", r.dir, []string{image, "VERSION=1.2.3+5"}, `"1.2.3+5": a tag of an image cannot contain a plus sign`},
		{"no version at all", r.dir, []string{image, "VERSION=latest"}, `"latest": must be a semantic version`},
		{"two lines", r.dir, []string{image, "VERSION=1.2.3\n1.2.3"}, "VERSION contains a character that no version has"},
		{"suffix of a variant", r.dir, []string{image, "VERSION=1.2.3-scratch"}, "give VARIANT=scratch instead"},
		{"unknown variant", r.dir, []string{image, "VERSION=1.2.3", "VARIANT=debian"}, `VARIANT "debian": must be default, current or scratch`},
		{"uncommitted changes", dirty.dir, []string{image, "VERSION=1.2.3"}, "uncommitted changes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			os.Remove(started)
			var stderr bytes.Buffer
			command := exec.Command("make", "release")
			command.Dir, command.Stderr = test.dir, &stderr
			command.Env = environ(append(test.variables, "DOCKER="+docker)...)
			err := command.Run()
			_, notStarted := os.Stat(started)
			if test.want == "" {
				if notStarted != nil {
					t.Errorf("nothing was built: %v: %s", err, stderr.Bytes())
				}
				return
			}
			if err == nil || notStarted == nil {
				t.Errorf("not refused: error %v, something was built %v", err, notStarted == nil)
			}
			var lines []string
			for _, line := range strings.Split(strings.TrimSpace(stderr.String()), "\n") {
				if !strings.HasPrefix(line, "make: *** ") { // make's own, which says that the recipe failed
					lines = append(lines, line)
				}
			}
			if len(lines) != 1 || !strings.Contains(lines[0], test.want) {
				t.Errorf("got %q, want one line with %q", lines, test.want)
			}
		})
	}
}
