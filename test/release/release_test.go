//go:build release

// Package release_test rehearses a release of the current commit: it pushes the images to a registry on this
// machine with make release, packs the archives with make dist, and looks at both as docs/release.md tells users
// to. It takes the image's name in that registry from REGISTRY and the builder from BUILDX_BUILDER. It does not
// test the service, which test/image does.
package release_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

const (
	program = "devops-info-service"
	tags    = "1.2.3 1.2 latest 1.2.3-scratch 1.2-scratch latest-scratch 1.2.4-rc.1"

	// The default variant is rehearsed for the platforms whose base image is in the registry; scratch needs no base.
	basePlatforms  = "linux/amd64,linux/arm64"
	imagePlatforms = "linux/386,linux/amd64,linux/arm/v6,linux/arm/v7,linux/arm64,linux/ppc64le,linux/s390x"
	distPlatforms  = imagePlatforms + ",darwin/amd64,darwin/arm64,freebsd/amd64,windows/amd64,windows/arm64"
)

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got\n%v\nwant\n%v", what, got, want)
	}
}

// run runs a command in a folder and returns what it prints. Nothing in this environment decides what is released;
// make's own variables would, because they hold those that make test-release was given.
func run(dir, name string, args ...string) (string, error) {
	decides := regexp.MustCompile(`^(REGISTRY|VERSION|REVISION|VARIANT|PLATFORMS|SOURCE\w*|NO_CACHE|MAKE\w*|MFLAGS)=`)
	var stderr bytes.Buffer
	command := exec.Command(name, args...)
	command.Dir, command.Env, command.Stderr = dir, slices.DeleteFunc(os.Environ(), decides.MatchString), &stderr
	stdout, err := command.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s%s", command, err, stdout, stderr.Bytes())
	}
	return strings.TrimSpace(string(stdout)), err
}

func must(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	stdout, err := run(dir, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return stdout
}

// clone returns a folder of its own with the current commit.
func clone(t *testing.T) string {
	t.Helper()
	root, dir := harness.Root(t), filepath.Join(t.TempDir(), "clone")
	must(t, root, "git", "clone", "-q", ".", dir)
	// The form of address that git uses, which a release turns into the one that people use.
	must(t, dir, "git", "remote", "set-url", "origin", "git@example.com:owner/devops-info-service.git")
	return dir
}

// show returns what buildx shows of an image, by a template.
func show(t *testing.T, reference, template string) string {
	t.Helper()
	return must(t, ".", harness.Engine(), "buildx", "imagetools", "inspect", reference, "--format", template)
}

// What buildx shows: the digests of the platforms' images; and of the index and of each image all that check expects.
const (
	digests = `{{range .Manifest.Manifests}}{{if ne .Platform.OS "unknown"}}{{.Digest}} {{end}}{{end}}`
	details = `{{.Manifest.MediaType}} {{.Manifest.Annotations}}
{{range $platform, $image := .Image}}{{$platform}} {{.Config.User}} {{.Config.Labels}}
{{- range (index $.SBOM $platform).SPDX.packages}}
	{{- if eq .name "devops-info-service"}} {{.name}}{{end}}{{if eq .name "stdlib"}} {{.versionInfo}}{{end}}
{{- end}}
{{- with (index $.Provenance $platform).SLSA}} {{.runDetails.metadata.buildkit_metadata.vcs.revision}}
	{{- with .buildDefinition}} {{index .externalParameters.request.args "build-arg:REVISION"}}
		{{- if .internalParameters.buildConfig.llbDefinition}} mode=max{{end}}
	{{- end}}
{{- end}}
{{end}}`
)

// rehearsal is a clone, the image's name without a tag, and the binaries that make dist gave, by platform.
type rehearsal struct {
	dir, image string
	binaries   map[string]string
}

// release runs make release, expects these tags and no others to point at what it pushed, and returns NAME@DIGEST.
func (r rehearsal) release(t *testing.T, tagged string, variables ...string) string {
	t.Helper()
	started := time.Now()
	printed := must(t, r.dir, "make", append(variables, "--no-print-directory", "release", "REGISTRY="+r.image)...)
	t.Logf("%s (%.0f s)", printed, time.Since(started).Seconds())
	name, digest, _ := strings.Cut(printed, "@")
	want := strings.Fields(tagged)
	expect(t, "all that is printed, up to the digest", name, r.image+":"+want[0])
	for _, tag := range strings.Fields(tags) {
		shown, _ := run(".", harness.Engine(), "buildx", "imagetools", "inspect", r.image+":"+tag) // empty if there is none
		expect(t, tag+" points at it", strings.Contains(shown, digest), slices.Contains(want, tag))
	}
	return r.image + "@" + digest
}

// check expects an image for each of these platforms and no other, with the binary that make dist gave.
func (r rehearsal) check(t *testing.T, reference string, platforms string) {
	t.Helper()
	commit := must(t, r.dir, "git", "rev-parse", "HEAD")
	created := must(t, r.dir, "env", "TZ=UTC", "git", "log", "-1", "--date=format-local:%FT%TZ", "--format=%cd")
	labels := map[string]string{
		"org.opencontainers.image.title":       "devops-info-service",
		"org.opencontainers.image.description": "DevOps course info service",
		"org.opencontainers.image.version":     "1.2.3",
		"org.opencontainers.image.revision":    commit,
		"org.opencontainers.image.source":      "https://example.com/owner/devops-info-service",
		"org.opencontainers.image.created":     created,
	}
	_, goVersion, _ := strings.Cut(must(t, ".", "go", "version", r.binaries["linux/amd64"]), ": ")
	want := fmt.Sprint("application/vnd.oci.image.index.v1+json ", labels)
	for _, platform := range strings.Split(platforms, ",") {
		want += fmt.Sprintf("\n%s 10001:10001 %v %s %s %s %s mode=max", platform, labels, program, goVersion, commit, commit)
	}
	expect(t, reference, show(t, reference, details), want)
	for _, digest := range strings.Fields(show(t, reference, digests)) {
		var manifest struct{ Annotations map[string]string }
		raw := must(t, ".", harness.Engine(), "buildx", "imagetools", "inspect", "--raw", r.image+"@"+digest)
		if err := json.Unmarshal([]byte(raw), &manifest); err != nil {
			t.Fatal(err)
		}
		expect(t, digest, manifest.Annotations, labels)
	}

	// Copied out of the images by a build, which starts no container, so nothing is emulated.
	dir := t.TempDir()
	dockerfile := "FROM scratch\nCOPY --from=" + reference + " /usr/local/bin/" + program + " /\n"
	if err := os.WriteFile(dir+"/Dockerfile", []byte(dockerfile), 0o666); err != nil {
		t.Fatal(err)
	}
	must(t, dir, harness.Engine(), "buildx", "build", "--platform", platforms, "-o", "out", ".")
	t.Log(must(t, dir+"/out", "go", "version", "-m", "."))
	for _, platform := range strings.Split(platforms, ",") {
		must(t, dir, "cmp", "out/"+strings.ReplaceAll(platform, "/", "_")+"/"+program, r.binaries[platform])
	}
}

// pull pulls an image into the engine, starts it, expects 200 from both endpoints and returns the container.
func pull(t *testing.T, reference string) (container string) {
	harness.Must(t, "pull", "-q", reference)
	t.Cleanup(func() { harness.Must(t, "rmi", reference) })
	container, address := harness.Published(t, reference)
	for _, path := range []string{"/health", "/"} {
		response, _ := harness.Get(t, address, path)
		expect(t, "GET "+path, response.StatusCode, http.StatusOK)
	}
	return container
}

// dist runs make dist in two folders and returns the binaries in the archives, by platform.
func dist(t *testing.T, dir string) map[string]string {
	other := clone(t)
	for _, dir := range []string{dir, other} {
		must(t, dir, "make", "dist", "VERSION=1.2.3")
		t.Log(must(t, dir+"/dist", "cat", "SHA256SUMS"))
	}
	must(t, ".", "diff", "-r", dir+"/dist", other+"/dist")
	checked := must(t, dir+"/dist", "sha256sum", "--strict", "-c", "SHA256SUMS")
	expect(t, "archives", strings.Count(checked, ": OK"), strings.Count(distPlatforms, ",")+1)

	unpacked := t.TempDir()
	binaries := make(map[string]string)
	var files []string
	for _, platform := range strings.Split(distPlatforms, ",") {
		name := program + "_1.2.3_" + strings.ReplaceAll(platform, "/", "_")
		binary := filepath.Join(unpacked, name, program)
		if strings.HasPrefix(platform, "windows/") {
			binary += ".exe"
			must(t, unpacked, "unzip", "-q", dir+"/dist/"+name+".zip")
		} else {
			must(t, unpacked, "tar", "-xzf", dir+"/dist/"+name+".tar.gz")
		}
		must(t, unpacked, "cmp", name+"/README.md", dir+"/README.md")
		must(t, unpacked, "test", "-x", binary)
		built := must(t, ".", "go", "version", "-m", binary) + "\n"
		goos, goarch, _ := strings.Cut(platform, "/")
		for _, setting := range strings.Fields("GOOS=" + goos + " GOARCH=" + strings.Replace(goarch, "/v", " GOARM=", 1)) {
			expect(t, name+" with "+setting, strings.Contains(built, setting+"\n"), true)
		}
		files = append(files, filepath.Join(unpacked, name, "README.md"), binary)
		binaries[platform] = binary
	}
	found, _ := filepath.Glob(unpacked + "/*/*")
	slices.Sort(files)
	expect(t, "files in the archives", found, files)
	return binaries
}

func TestRelease(t *testing.T) {
	r := rehearsal{dir: clone(t), image: "localhost:5000/" + program}
	if changes := must(t, harness.Root(t), "git", "status", "--porcelain"); changes != "" {
		t.Logf("what is rehearsed is the last commit, without these changes:\n%s", changes)
	}
	if name := os.Getenv("REGISTRY"); name != "" {
		r.image = name
	}
	if !regexp.MustCompile(`^(localhost|127\.0\.0\.1)[:/]`).MatchString(r.image) {
		t.Fatalf("REGISTRY %q: must be on localhost, because a rehearsal moves the tag latest", r.image)
	}
	// First, so that where nothing can be pushed nothing is built.
	released := r.release(t, "1.2.3 1.2 latest", "VERSION=1.2.3", "PLATFORMS="+basePlatforms)
	r.binaries = dist(t, r.dir)
	r.check(t, released, basePlatforms)
	container := pull(t, released)
	expect(t, "user", harness.Must(t, "exec", container, "sh", "-c", "id -u; id -g"), "10001\n10001")
	t.Log(must(t, r.dir, "deploy/release-note", strings.Replace(released, "@", ":1.2.3@", 1)))

	t.Run("scratch for every platform", func(t *testing.T) {
		released := r.release(t, "1.2.3-scratch 1.2-scratch latest-scratch", "VERSION=1.2.3", "VARIANT=scratch")
		r.check(t, released, imagePlatforms)
		expect(t, "layers", show(t, released, "{{range .Image}}{{len .RootFS.DiffIDs}}{{end}}"), "1111111") // no base
		pull(t, released)
	})
	t.Run("a second build gives the same images", func(t *testing.T) {
		again := r.release(t, "1.2.3 1.2 latest", "VERSION=1.2.3", "PLATFORMS="+basePlatforms, "NO_CACHE=true")
		expect(t, "digests", show(t, again, digests), show(t, released, digests))
	})
	t.Run("a pre-release gets only its own tag", func(t *testing.T) {
		r.release(t, "1.2.4-rc.1", "VERSION=1.2.4-rc.1", "PLATFORMS=linux/amd64")
	})
}

// Stands in for docker: answers what deploy/release asks, and shows by a file if it is told to build.
const fake = `#!/bin/sh
case $* in
"buildx inspect") echo "Driver: ${DRIVER:-remote}"; exit "${NO_BUILDER:-0}" ;;
"buildx imagetools inspect "*) echo "${NO_REGISTRY:-not found}" >&2; exit 1 ;;
"info "*) echo "[[driver-type ${STORE:-overlay2}]]" ;;
"buildx bake "*) touch "$0.built" ;;
esac
`

func TestRefusals(t *testing.T) {
	docker := filepath.Join(t.TempDir(), "docker")
	if err := os.WriteFile(docker, []byte(fake), 0o777); err != nil {
		t.Fatal(err)
	}
	committed, changed, noGit := clone(t), clone(t), clone(t)
	must(t, changed, "sh", "-c", ">docs/comparison.md")
	must(t, noGit, "rm", "-rf", ".git")
	const (
		images, archives = "make release REGISTRY=registry.example/name VERSION=1.2.3 ", "make dist VERSION=1.2.3 "

		built       = "did not report its digest" // because the fake pushes nothing
		noVersion   = "must be a semantic version"
		twoCommands = `.*\n.*docker buildx create --use.*\n.*docker run -d -p 5000:5000 registry:2`
	)
	for _, test := range []struct {
		dir, command string
		want         string // a regular expression
	}{
		{committed, images, built},
		{committed, images + "VERSION=1.2.3-rc.1", built},
		{committed, images + "VARIANT=scratch", built},
		{committed, images + "DRIVER=docker STORE=io.containerd.snapshotter.v1", built},
		{committed, images + "VERSION=", "VERSION is not set"},
		{committed, images + "VERSION=v1.2.3", noVersion},
		{committed, images + "VERSION=1.2", noVersion},
		{committed, images + "VERSION=1.02.3", noVersion},
		{committed, images + "VERSION=1.2.3-rc.01", noVersion},
		{committed, images + "VERSION=1.2.3-", noVersion},
		{committed, images + "VERSION=1.2.3+5", noVersion},
		{committed, images + "VERSION=latest", noVersion},
		{committed, images + "VERSION='1.2.3\n1.2.3'", noVersion},
		{committed, images + "VERSION=1.2.3-scratch", "give VARIANT=scratch instead"},
		{committed, images + "VARIANT=debian", `VARIANT "debian": must be default or scratch`},
		{committed, images + "REGISTRY=", "REGISTRY is not set"},
		{changed, images, "uncommitted changes"},
		{noGit, images, "not a git repository, so"},
		{committed, images + "DRIVER=docker", "engine's own builder" + twoCommands},
		{committed, images + "NO_BUILDER=1", "no builder" + twoCommands},
		{committed, images + "NO_REGISTRY='dial tcp: connection refused'", "no registry" + twoCommands},
		{committed, archives + "VERSION=v1.2.3", noVersion},
		{changed, archives, "uncommitted changes"},
		{committed, archives + "PLATFORMS=linux/none", "unsupported GOOS/GOARCH pair linux/none"},
		{changed, "deploy/release-note name:1.2.3@sha256:0", "docs/comparison.md has no table"},
	} {
		t.Run(test.command+" "+test.want, func(t *testing.T) {
			os.Remove(docker + ".built")
			_, err := run(test.dir, "sh", "-c", "DOCKER="+docker+" "+test.command)
			if err == nil || !regexp.MustCompile(test.want).MatchString(err.Error()) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			_, noImages := os.Stat(docker + ".built")
			_, noArchives := os.Stat(test.dir + "/dist")
			expect(t, "built", []bool{noImages == nil, noArchives == nil}, []bool{test.want == built, false})
		})
	}
}
