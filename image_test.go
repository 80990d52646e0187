//go:build image

package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sort"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// These tests run the image IMAGE, which must exist, in a real engine: make test-image. Nothing is
// skipped: without an engine or without the image they fail.

const binaryPath = "usr/local/bin/devops-info-service"

func engine() string {
	if name := os.Getenv("DOCKER"); name != "" {
		return name
	}
	return "docker"
}

func image() string {
	if name := os.Getenv("IMAGE"); name != "" {
		return name
	}
	return "devops-go-multi"
}

// docker runs a command of the engine and returns its output, both streams, and exit code.
func docker(t testing.TB, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, engine(), args...)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=1", "BUILDAH_FORMAT=docker")
	output, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("no container engine: %v", err)
	}
	return strings.TrimSpace(string(output)), cmd.ProcessState.ExitCode()
}

// must is docker where the command has to succeed.
func must(t testing.TB, args ...string) string {
	t.Helper()
	output, code := docker(t, args...)
	if code != 0 {
		t.Fatalf("%s %s: exit %d\n%s", engine(), strings.Join(args, " "), code, output)
	}
	return output
}

var containers atomic.Int64

// unique is a name for one container or image of this run.
func unique() string {
	return fmt.Sprintf("devops-info-service-test-%d-%d", os.Getpid(), containers.Add(1))
}

// container starts the image until the test ends and returns its name. arguments are those of
// docker run.
func container(t testing.TB, image string, arguments ...string) string {
	t.Helper()
	name := unique()
	t.Cleanup(func() { docker(t, "rm", "-f", name) })
	must(t, append(append([]string{"run", "-d", "--name", name}, arguments...), image)...)
	return name
}

// published starts the image with its port published and returns its name and address.
func published(t testing.TB, arguments ...string) (name, address string) {
	t.Helper()
	name = container(t, image(), append([]string{"-p", "127.0.0.1::5002"}, arguments...)...)
	address, _, _ = strings.Cut(must(t, "port", name, "5002/tcp"), "\n")
	waitFor(t, address, func() bool {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return false
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Second))
		io.WriteString(conn, "GET /health HTTP/1.0\r\n\r\n")
		answer, _ := io.ReadAll(conn)
		return bytes.HasPrefix(answer, []byte("HTTP/1.0 200 "))
	})
	return name, address
}

// waitForHealth waits until the engine gives that verdict by the image's own HEALTHCHECK.
func waitForHealth(t testing.TB, name, want string) {
	t.Helper()
	var got string
	for deadline := time.Now().Add(time.Minute); got != want; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the engine says %q, want %q\n%s\n%s", got, want,
				must(t, "inspect", "-f", "{{json .State.Health}}", name), must(t, "logs", name))
		}
		got = must(t, "inspect", "-f", "{{.State.Health.Status}}", name)
	}
}

// The command is the image's; only its timing is shorter than the image's, so that the test is.
var promptHealth = []string{"--health-interval", "1s", "--health-retries", "1"}

func TestImageHealth(t *testing.T) {
	for name, arguments := range map[string][]string{
		"as it is":         nil,
		"locked down":      {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none"},
		"PORT=8080":        {"-e", "PORT=8080"},
		"HOST=127.0.0.1":   {"-e", "HOST=127.0.0.1"},
		"HOST=::1":         {"-e", "HOST=::1", "--sysctl", "net.ipv6.conf.lo.disable_ipv6=0"},
		"an arbitrary uid": {"--user", "4711:4711"},
	} {
		arguments := append(promptHealth, arguments...)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			waitForHealth(t, container(t, image(), arguments...), "healthy")
		})
	}
}

func TestImageTurnsUnhealthyWhenStopped(t *testing.T) {
	name := container(t, image(), promptHealth...)
	waitForHealth(t, name, "healthy")
	must(t, "kill", "-s", "STOP", name)
	waitForHealth(t, name, "unhealthy")
	must(t, "kill", "-s", "CONT", name)
	waitForHealth(t, name, "healthy")
}

func TestImageUser(t *testing.T) {
	name, _ := published(t)
	for command, want := range map[string]string{
		"whoami": "mariaappgo",
		"id -u":  "10001",
		"id -g":  "10001",
		"id":     "uid=10001(mariaappgo) gid=10001(mariaappgo) groups=10001(mariaappgo)",
	} {
		if got := must(t, append([]string{"exec", name}, strings.Fields(command)...)...); got != want {
			t.Errorf("docker exec … %s: %q, want %q", command, got, want)
		}
	}
	if got := must(t, "run", "--rm", image(), "whoami"); got != "mariaappgo" {
		t.Errorf("docker run --rm IMAGE whoami: %q", got)
	}
	if got := must(t, "inspect", "-f", "{{.Config.User}}", image()); got != "10001:10001" {
		t.Errorf("the image's user is %q, want it by number", got)
	}
	writable := must(t, "exec", name, "sh", "-c",
		`find / -xdev \( -type d -o -type f \) 2>/dev/null | while read -r path; do [ -w "$path" ] && echo "$path"; done; true`)
	if writable != "/tmp\n/var/tmp" && writable != "/var/tmp\n/tmp" {
		t.Errorf("the user can write\n%s, want only /tmp and /var/tmp", writable)
	}
}

// logLine finds the container's first log line with that message.
func logLine(t testing.TB, name, message string) map[string]any {
	t.Helper()
	logs := must(t, "logs", name)
	for _, text := range strings.Split(logs, "\n") {
		var line map[string]any
		if json.Unmarshal([]byte(text), &line) == nil && line["msg"] == message {
			return line
		}
	}
	t.Fatalf("no log line %q in\n%s", message, logs)
	return nil
}

func TestImageStop(t *testing.T) {
	name, _ := published(t)
	if got := must(t, "exec", name, "cat", "/proc/1/cmdline"); got != "/"+binaryPath+"\x00" {
		t.Errorf("process 1 is %q", got)
	}
	began := time.Now()
	must(t, "stop", name)
	t.Logf("docker stop took %v", time.Since(began))
	if got := must(t, "inspect", "-f", "{{.State.ExitCode}}", name); got != "0" {
		t.Errorf("exit code %s, want 0", got)
	}
	// By the service's own clock, so that a busy engine does not count.
	var at [2]time.Time
	for i, message := range []string{"stopping", "stopped"} {
		at[i], _ = time.Parse(time.RFC3339Nano, logLine(t, name, message)["time"].(string))
	}
	if took := at[1].Sub(at[0]); took < 0 || took > time.Second {
		t.Errorf("stopping took %v, want under a second", took)
	}
}

func TestImageStopLetsARequestInFlightFinish(t *testing.T) {
	name, address := published(t)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: local")
	time.Sleep(200 * time.Millisecond) // for the half to pass the engine's proxy
	stopped := make(chan string)
	go func() {
		output, _ := docker(t, "stop", name)
		stopped <- output
	}()
	waitFor(t, "the service to be stopping", func() bool {
		return strings.Contains(must(t, "logs", name), `"msg":"stopping"`)
	})
	io.WriteString(conn, "host\r\n\r\n")
	if response, body := receive(t, bufio.NewReader(conn), "GET"); response.StatusCode != 200 || !strings.HasSuffix(body, "}\n") {
		t.Errorf("in flight: %d %q", response.StatusCode, body)
	}
	<-stopped
	if got := must(t, "inspect", "-f", "{{.State.ExitCode}}", name); got != "0" {
		t.Errorf("exit code %s, want 0\n%s", got, must(t, "logs", name))
	}
}

// zoneFile is what a system's zone file for that zone holds.
func zoneFile(t testing.TB, zone string) []byte {
	t.Helper()
	file, err := zoneArchive(t).Open(zone)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	content, err := io.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestImageEnvironment(t *testing.T) {
	_, address := published(t, "-e", "TZ=Asia/Tokyo")
	if got := info(t, address, "").Runtime; got.Timezone != "Asia/Tokyo" || !strings.HasSuffix(got.CurrentTime, "+09:00") {
		t.Errorf("TZ=Asia/Tokyo: %+v", got)
	}
	_, address = published(t)
	if got := info(t, address, ""); got.Runtime.Timezone != "UTC" || !strings.HasPrefix(got.System.PlatformVersion, "Alpine Linux v") {
		t.Errorf("by default: %+v", got)
	}
	// An empty TZ is an unset one: the zone of the system, where it has one.
	zone := filepath.Join(t.TempDir(), "localtime")
	if err := os.WriteFile(zone, zoneFile(t, "Asia/Tokyo"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, setting := range []string{"TZ=", "OTHER="} {
		_, address = published(t, "-v", zone+":/etc/localtime:ro", "-e", setting)
		if got := info(t, address, "").Runtime; got.Timezone != "JST" || !strings.HasSuffix(got.CurrentTime, "+09:00") {
			t.Errorf("%s, with /etc/localtime of Tokyo: %+v", setting, got)
		}
	}
	for setting, want := range map[string]string{
		"PORT=80a":        `PORT "80a": must be 0 to 65535`,
		"DEBUG=maybe":     `DEBUG "maybe": must be true or false`,
		"TZ=Mars/Olympus": `TZ "Mars/Olympus": must be a name from the tz database`,
	} {
		name := container(t, image(), "-e", setting)
		if code := must(t, "wait", name); code != "2" {
			t.Errorf("%s: exit %s, want 2", setting, code)
		}
		if logs := must(t, "logs", name); !strings.HasPrefix(logs, "devops-info-service: "+want) || strings.Contains(logs, "\n") {
			t.Errorf("%s: logs %q, want one line %q", setting, logs, want)
		}
	}
}

func TestImageTellsItsLimits(t *testing.T) {
	name, address := published(t, "--cpus=0.5", "--memory=64m")
	got := info(t, address, "").System
	if got.CPULimit == nil || *got.CPULimit != 0.5 || got.MemoryLimit == nil || *got.MemoryLimit != 64<<20 {
		t.Errorf("--cpus=0.5 --memory=64m: %v", got)
	}
	if got := logLine(t, name, "listening")["gomaxprocs"]; got != 1.0 {
		t.Errorf("--cpus=0.5: GOMAXPROCS %v, want 1", got)
	}
	_, address = published(t)
	if _, body := get(t, address, "GET", "/", ""); !strings.Contains(body, `"cpu_limit":null,"memory_limit_bytes":null`) {
		t.Errorf("without limits: %s", body)
	}
}

// shout returns an attack: one request, and then nothing is read.
func shout(request []byte) func(*net.TCPConn) {
	return func(conn *net.TCPConn) {
		conn.SetReadBuffer(1)
		conn.Write(request)
		time.Sleep(5 * time.Second)
	}
}

// In 32 MiB and half a CPU, 5,000 connections at once neither kill the process nor hide /health.
func TestImageAnswersIn32MiBDuring5000Connections(t *testing.T) {
	wait := func(conn *net.TCPConn) { conn.Read(make([]byte, 1)) } // silent until closed
	// As large and as dear to encode as it may be.
	large := []byte("GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + strings.Repeat("\"\x80", 7500) + "\r\n\r\n")
	wholeLarge := []byte("HEAD /health HTTP/1.1\r\nHost: localhost\r\nCookie: " + strings.Repeat("c", smallRequest) + "\r\n\r\n")
	for attack, with := range map[string]struct {
		attack  func(*net.TCPConn)
		n       int
		slowest time.Duration
	}{
		"idle":         {wait, 5000, time.Second},
		"slow headers": {trickle, 5000, time.Second},
		"never read":   {hoard, 5000, time.Second},
		// Here the bound is that of memory: what is sent takes the processor its time.
		"half of 16 KiB of fields": {halves(header(maxHeaderBytes, false)), 5000, 5 * time.Second},
		"16 KiB of fields":         {shout(header(maxHeaderBytes-100, true)), 5000, 5 * time.Second},
		"512 bytes of fields":      {shout(header(smallRequest, true)), 5000, 5 * time.Second},
		"a field of 15 KB":         {shout(large), 5000, 5 * time.Second},
		// So few that their connections are kept.
		"half behind a whole one": {shout(append(wholeLarge, header(4000, false)...)), maxConnections*3/4 - 4, 5 * time.Second},
	} {
		t.Run(attack, func(t *testing.T) {
			name, _ := published(t, "--cpus=0.5", "--memory=32m", "--memory-swap=32m")
			address := must(t, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", name) + ":5002"
			ended := flood(t, address, with.n, with.attack)
			if slowest := probe(t, address, 6*time.Second); slowest > with.slowest {
				t.Errorf("the slowest probe took %v", slowest)
			}
			t.Logf("memory: %s", must(t, "stats", "--no-stream", "--format", "{{.MemUsage}}", name))
			ended()
			if got := must(t, "inspect", "-f", "{{.State.Running}} {{.State.OOMKilled}} {{.RestartCount}}", name); got != "true false 0" {
				t.Errorf("running, OOM-killed, restarts: %s", got)
			}
		})
	}
}

// file is one entry of an image, without its times.
type file struct {
	header  string // type, mode, owner, size, link
	content []byte
}

// files reads every file of an image.
func files(t testing.TB, image string) map[string]file {
	t.Helper()
	name := unique()
	// scratch has no command of its own; it is never run.
	must(t, "create", "--name", name, image, "/never-run")
	t.Cleanup(func() { docker(t, "rm", "-f", name) })
	cmd := exec.Command(engine(), "export", name)
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	found := map[string]file{}
	for archive := tar.NewReader(output); ; {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		path := strings.TrimPrefix(strings.TrimSuffix(header.Name, "/"), "./")
		found[path] = file{fmt.Sprintf("%c %o %d:%d %d %s", header.Typeflag, header.Mode, header.Uid, header.Gid, header.Size, header.Linkname), content}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return found
}

func TestImageAddsOnlyTheServiceToItsBase(t *testing.T) {
	dockerfile, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	base := files(t, regexp.MustCompile(`(?m)^ARG RUNTIME_IMAGE=(.+)$`).FindStringSubmatch(string(dockerfile))[1])
	ours := files(t, image())
	var differ []string
	for path, file := range ours {
		if was, found := base[path]; !found || file.header != was.header || !bytes.Equal(file.content, was.content) {
			differ = append(differ, path)
		}
	}
	for path := range base {
		if _, found := ours[path]; !found {
			differ = append(differ, "without "+path)
		}
	}
	sort.Strings(differ)
	if got, want := strings.Join(differ, " "), "etc/group etc/passwd "+binaryPath; got != want {
		t.Errorf("differs from its base in\n%s, want\n%s", got, want)
	}
	for path, want := range map[string]string{
		"etc/passwd": "mariaappgo:x:10001:10001:devops-info-service:/:/sbin/nologin\n",
		"etc/group":  "mariaappgo:x:10001:\n",
	} {
		if added, found := strings.CutPrefix(string(ours[path].content), string(base[path].content)); !found || added != want {
			t.Errorf("%s adds %q to the base's, want %q", path, added, want)
		}
	}
}

// parse reads the binary out of an image.
func parse(t testing.TB, image string) *elf.File {
	t.Helper()
	content := files(t, image)[binaryPath].content
	parsed, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		t.Fatalf("%s in %s: %v", binaryPath, image, err)
	}
	return parsed
}

func TestImageBinaryIsStatic(t *testing.T) {
	binary := parse(t, image())
	for _, segment := range binary.Progs {
		if segment.Type == elf.PT_INTERP {
			t.Error("the binary has an interpreter")
		}
	}
	want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH]
	if binary.Machine != want {
		t.Errorf("the binary is for %v, want %v", binary.Machine, want)
	}
	if binary.Section(".symtab") != nil || binary.Section(".debug_info") != nil {
		t.Error("the binary has symbol tables")
	}
}

// build builds the tree's Dockerfile, passed through edit, from a copy of the tree, and returns the
// image's name.
func build(t testing.TB, edit func(string) string, arguments ...string) string {
	t.Helper()
	folder := t.TempDir()
	sources, _ := filepath.Glob("*.go")
	for _, path := range append(sources, "go.mod", "Dockerfile", ".dockerignore") {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if path == "Dockerfile" {
			content = []byte(edit(string(content)))
		}
		if err := os.WriteFile(filepath.Join(folder, path), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	name := unique()
	t.Cleanup(func() { docker(t, "rmi", "-f", name) })
	must(t, append(append([]string{"build", "-t", name}, arguments...), folder)...)
	return name
}

func unchanged(dockerfile string) string { return dockerfile }

func TestImageBinaryIsReproducible(t *testing.T) {
	cacheMount := regexp.MustCompile(`--mount=type=cache\S*`) // --no-cache does not empty it
	var sums [2][sha256.Size]byte
	for i, folder := range []string{"/src", "/somewhere/else"} {
		name := build(t, func(dockerfile string) string {
			edited := cacheMount.ReplaceAllString(dockerfile, "")
			edited = strings.Replace(edited, "WORKDIR /src\n", "WORKDIR "+folder+"\n", 1)
			if !strings.Contains(edited, "WORKDIR "+folder+"\n") || edited == dockerfile {
				t.Fatal("Dockerfile has no cache mount or no WORKDIR /src")
			}
			return edited
		}, "--no-cache", "--build-arg", "RUNTIME_IMAGE=scratch")
		sums[i] = sha256.Sum256(files(t, name)[binaryPath].content)
	}
	if sums[0] != sums[1] {
		t.Errorf("built in two folders: sha256 %x and %x", sums[0], sums[1])
	}
}

func TestImageOnScratch(t *testing.T) {
	name := build(t, unchanged, "--build-arg", "RUNTIME_IMAGE=scratch")
	waitForHealth(t, container(t, name, promptHealth...), "healthy")
	running := container(t, name, "-p", "127.0.0.1::5002", "-e", "TZ=Pacific/Chatham")
	address, _, _ := strings.Cut(must(t, "port", running, "5002/tcp"), "\n")
	waitForHealth(t, container(t, name, promptHealth...), "healthy")
	got := info(t, address, "")
	if got.System.PlatformVersion != "linux" || got.Runtime.Timezone != "Pacific/Chatham" || !regexp.MustCompile(`\+1[23]:45$`).MatchString(got.Runtime.CurrentTime) {
		t.Errorf("on scratch: %+v", got)
	}
}

func TestImageForAnotherPlatform(t *testing.T) {
	name := build(t, unchanged, "--build-arg", "RUNTIME_IMAGE=scratch", "--platform", "linux/arm64")
	if machine := parse(t, name).Machine; machine != elf.EM_AARCH64 {
		t.Errorf("--platform linux/arm64 gives a binary for %v", machine)
	}
	if got := must(t, "inspect", "-f", "{{.Os}}/{{.Architecture}}", name); got != "linux/arm64" {
		t.Errorf("the image is for %s", got)
	}
}

func TestImageLabels(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var labels map[string]string
	if err := json.Unmarshal([]byte(must(t, "inspect", "-f", "{{json .Config.Labels}}", image())), &labels); err != nil {
		t.Fatal(err)
	}
	const prefix = "org.opencontainers.image."
	for label, want := range map[string]string{"title": serviceName, "description": serviceDescription} {
		if got := labels[prefix+label]; got != want {
			t.Errorf("label %s is %q, want %q", label, got, want)
		}
	}
	said := strings.Fields(must(t, "run", "--rm", image(), "/"+binaryPath, "-version"))
	if got := labels[prefix+"version"]; got == "" || got != said[1] {
		t.Errorf("label version is %q, the binary says %q", got, said)
	}
	if got := labels[prefix+"revision"]; got != "" && "("+got+")" != said[2] {
		t.Errorf("label revision is %q, the binary says %q", got, said)
	}
	if len(labels) != 4 {
		t.Errorf("the labels are %v, want four", labels)
	}
	for label := range labels {
		if !strings.Contains(string(readme), "| `"+label+"` |") {
			t.Errorf("the README does not have the label %s", label)
		}
	}
	ports := must(t, "inspect", "-f", "{{json .Config.ExposedPorts}}", image())
	if ports != `{"5002/tcp":{}}` || !strings.Contains(string(readme), "`5002/tcp`") {
		t.Errorf("exposes %s; the README must say so", ports)
	}
}
