//go:build image

// Package image tests the image IMAGE, which must exist, in a real container engine; make test-image
// builds it first. Nothing is skipped, because a test that needs an engine and finds none has failed.
package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sort"
	"strings"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

const binaryPath = "usr/local/bin/devops-info-service"

func TestMain(m *testing.M) { harness.Main(m) }

// The command is the image's own. Only its timing is shorter, so that the tests are.
var frequentChecks = []string{"--health-interval", "1s", "--health-retries", "1"}

func TestImageHealth(t *testing.T) {
	for name, arguments := range map[string][]string{
		"as it is":         nil,
		"locked down":      {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none"},
		"PORT=8080":        {"-e", "PORT=8080"},
		"HOST=127.0.0.1":   {"-e", "HOST=127.0.0.1"},
		"HOST=::1":         {"-e", "HOST=::1", "--sysctl", "net.ipv6.conf.lo.disable_ipv6=0"},
		"an arbitrary uid": {"--user", "4711:4711"},
	} {
		arguments := append(append([]string{}, frequentChecks...), arguments...)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			harness.WaitForContainerHealth(t, harness.Container(t, harness.Image(), arguments...), "healthy")
		})
	}
}

func TestImageTurnsUnhealthyWhenStopped(t *testing.T) {
	name := harness.Container(t, harness.Image(), frequentChecks...)
	harness.WaitForContainerHealth(t, name, "healthy")
	harness.Must(t, "kill", "-s", "STOP", name)
	harness.WaitForContainerHealth(t, name, "unhealthy")
	harness.Must(t, "kill", "-s", "CONT", name)
	harness.WaitForContainerHealth(t, name, "healthy")
}

func TestImageUser(t *testing.T) {
	name, _ := harness.Published(t, harness.Image())
	for command, want := range map[string]string{
		"whoami": "mariaappgo",
		"id -u":  "10001",
		"id -g":  "10001",
		"id":     "uid=10001(mariaappgo) gid=10001(mariaappgo) groups=10001(mariaappgo)",
	} {
		if got := harness.Must(t, append([]string{"exec", name}, strings.Fields(command)...)...); got != want {
			t.Errorf("docker exec … %s: %q, want %q", command, got, want)
		}
	}
	if got := harness.Must(t, "inspect", "-f", "{{.Config.User}}", harness.Image()); got != "10001:10001" {
		t.Errorf("the image's user is %q, want it by number", got)
	}
	writable := harness.Must(t, "exec", name, "sh", "-c",
		`find / -xdev \( -type d -o -type f \) 2>/dev/null | while read -r path; do [ -w "$path" ] && echo "$path"; done; true`)
	if writable != "/tmp\n/var/tmp" && writable != "/var/tmp\n/tmp" {
		t.Errorf("the user can write\n%s, want only /tmp and /var/tmp", writable)
	}
}

// logLine returns the container's first log line with that message.
func logLine(t testing.TB, name, message string) map[string]any {
	t.Helper()
	return harness.WaitForLog(t, harness.ContainerLog{T: t, Name: name}, message, 1)[0]
}

func TestImageStop(t *testing.T) {
	name, _ := harness.Published(t, harness.Image())
	if got := harness.Must(t, "exec", name, "cat", "/proc/1/cmdline"); got != "/"+binaryPath+"\x00" {
		t.Errorf("process 1 is %q", got)
	}
	began := time.Now()
	harness.Must(t, "stop", name)
	t.Logf("docker stop took %v", time.Since(began))
	if got := harness.Must(t, "inspect", "-f", "{{.State.ExitCode}}", name); got != "0" {
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
	name, address := harness.Published(t, harness.Image())
	conn := harness.Dial(t, address)
	reader := bufio.NewReader(conn)
	// In one packet, so that the half was read when the response to the whole one arrives.
	harness.Write(t, conn, harness.SmallRequest+harness.HalfRequest)
	harness.Receive(t, reader, "GET")
	stopped := make(chan string)
	go func() {
		output, _ := harness.Docker(t, "stop", name)
		stopped <- output
	}()
	logLine(t, name, "stopping")
	harness.Write(t, conn, harness.RestOfRequest)
	if response, body := harness.Receive(t, reader, "GET"); response.StatusCode != 200 || !strings.HasSuffix(body, "}\n") {
		t.Errorf("got %d %q, want 200 and the whole body", response.StatusCode, body)
	}
	<-stopped
	if got := harness.Must(t, "inspect", "-f", "{{.State.ExitCode}}", name); got != "0" {
		t.Errorf("got exit code %s, want 0\n%s", got, harness.Must(t, "logs", name))
	}
}

// zoneFile is what a system's zone file for that zone holds.
func zoneFile(t testing.TB, zone string) []byte {
	t.Helper()
	file, err := harness.ZoneArchive(t).Open(zone)
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

func TestImageTimezone(t *testing.T) {
	// An empty TZ is the same as none: the zone of the system, where it has one.
	tokyo := filepath.Join(t.TempDir(), "localtime")
	if err := os.WriteFile(tokyo, zoneFile(t, "Asia/Tokyo"), 0o644); err != nil {
		t.Fatal(err)
	}
	system := tokyo + ":/etc/localtime:ro"
	for name, test := range map[string]struct {
		arguments      []string
		want, timeEnds string
	}{
		"TZ=Asia/Tokyo":             {[]string{"-e", "TZ=Asia/Tokyo"}, "Asia/Tokyo", "+09:00"},
		"default":                   {nil, "UTC", "Z"},
		"TZ empty, system of Tokyo": {[]string{"-v", system, "-e", "TZ="}, "JST", "+09:00"},
		"TZ unset, system of Tokyo": {[]string{"-v", system}, "JST", "+09:00"},
	} {
		test := test
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, address := harness.Published(t, harness.Image(), test.arguments...)
			got := harness.GetInfo(t, address)
			if got.Runtime.Timezone != test.want || !strings.HasSuffix(got.Runtime.CurrentTime, test.timeEnds) {
				t.Errorf("got %+v, want %s and a time that ends in %s", got.Runtime, test.want, test.timeEnds)
			}
			if !strings.HasPrefix(got.System.PlatformVersion, "Alpine Linux v") {
				t.Errorf("got the platform version %q, want Alpine's", got.System.PlatformVersion)
			}
		})
	}
}

func TestImageStopsOnABadEnvironment(t *testing.T) {
	for setting, want := range map[string]string{
		"PORT=80a":        `PORT "80a": must be 0 to 65535`,
		"DEBUG=maybe":     `DEBUG "maybe": must be true or false`,
		"TZ=Mars/Olympus": `TZ "Mars/Olympus": must be a name from the tz database`,
	} {
		setting, want := setting, want
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			name := harness.Container(t, harness.Image(), "-e", setting)
			if code := harness.Must(t, "wait", name); code != "2" {
				t.Errorf("got exit code %s, want 2", code)
			}
			if logs := harness.Must(t, "logs", name); !strings.HasPrefix(logs, "devops-info-service: "+want) || strings.Contains(logs, "\n") {
				t.Errorf("got the log %q, want one line %q", logs, want)
			}
		})
	}
}

func TestImageTellsItsLimits(t *testing.T) {
	name, address := harness.Published(t, harness.Image(), "--cpus=0.5", "--memory=64m")
	got := harness.GetInfo(t, address).System
	if got.CPULimit == nil || *got.CPULimit != 0.5 || got.MemoryLimit == nil || *got.MemoryLimit != 64<<20 {
		t.Errorf("--cpus=0.5 --memory=64m: %v", got)
	}
	if got := logLine(t, name, "listening")["gomaxprocs"]; got != 1.0 {
		t.Errorf("--cpus=0.5: GOMAXPROCS %v, want 1", got)
	}
	_, address = harness.Published(t, harness.Image())
	if _, body := harness.Get(t, address, "/"); !strings.Contains(body, `"cpu_limit":null,"memory_limit_bytes":null`) {
		t.Errorf("without limits: %s", body)
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
	name := harness.Unique()
	// scratch has no command of its own; it is never run.
	harness.Must(t, "create", "--name", name, image, "/never-run")
	t.Cleanup(func() { harness.Docker(t, "rm", "-f", name) })
	cmd := exec.Command(harness.Engine(), "export", name)
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
	dockerfile, err := os.ReadFile(filepath.Join(harness.Root(t), "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	base := files(t, regexp.MustCompile(`(?m)^ARG RUNTIME_IMAGE=(.+)$`).FindStringSubmatch(string(dockerfile))[1])
	ours := files(t, harness.Image())
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
	binary := parse(t, harness.Image())
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

// build builds a copy of the whole project, whose Dockerfile has passed through edit, and returns the
// image's name.
func build(t testing.TB, edit func(string) string, arguments ...string) string {
	t.Helper()
	root, folder := harness.Root(t), t.TempDir()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		target := filepath.Join(folder, relative)
		switch {
		case relative == ".git" || relative == "bin":
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil // .git is a file in a linked worktree
		case entry.IsDir():
			return os.MkdirAll(target, 0o755)
		case !entry.Type().IsRegular():
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if relative == "Dockerfile" {
			content = []byte(edit(string(content)))
		}
		return os.WriteFile(target, content, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	name := harness.Unique()
	t.Cleanup(func() { harness.Docker(t, "rmi", "-f", name) })
	harness.Must(t, append(append([]string{"build", "-t", name}, arguments...), folder)...)
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
	harness.WaitForContainerHealth(t, harness.Container(t, name, frequentChecks...), "healthy")
	_, address := harness.Published(t, name, "-e", "TZ=Pacific/Chatham")
	got := harness.GetInfo(t, address)
	if got.System.PlatformVersion != "linux" || got.Runtime.Timezone != "Pacific/Chatham" || !regexp.MustCompile(`\+1[23]:45$`).MatchString(got.Runtime.CurrentTime) {
		t.Errorf("got %+v, want linux and the time of Pacific/Chatham", got)
	}
}

func TestImageForAnotherPlatform(t *testing.T) {
	name := build(t, unchanged, "--build-arg", "RUNTIME_IMAGE=scratch", "--platform", "linux/arm64")
	if machine := parse(t, name).Machine; machine != elf.EM_AARCH64 {
		t.Errorf("--platform linux/arm64 gives a binary for %v", machine)
	}
	if got := harness.Must(t, "inspect", "-f", "{{.Os}}/{{.Architecture}}", name); got != "linux/arm64" {
		t.Errorf("the image is for %s", got)
	}
}

func TestImageLabels(t *testing.T) {
	documents := documentation(t)
	var labels map[string]string
	if err := json.Unmarshal([]byte(harness.Must(t, "inspect", "-f", "{{json .Config.Labels}}", harness.Image())), &labels); err != nil {
		t.Fatal(err)
	}
	const prefix = "org.opencontainers.image."
	for label, want := range map[string]string{"title": "devops-info-service", "description": "DevOps course info service"} {
		if got := labels[prefix+label]; got != want {
			t.Errorf("label %s: got %q, want %q", label, got, want)
		}
	}
	printed := strings.Fields(harness.Must(t, "run", "--rm", harness.Image(), "-version"))
	if got := labels[prefix+"version"]; got == "" || got != printed[1] {
		t.Errorf("label version: got %q, the binary prints %q", got, printed)
	}
	if got := labels[prefix+"revision"]; got != "" && "("+got+")" != printed[2] {
		t.Errorf("label revision: got %q, the binary prints %q", got, printed)
	}
	for label := range labels {
		if !strings.Contains(documents, label) {
			t.Errorf("neither the README nor docs/ mentions the label %s", label)
		}
	}
}

func TestImageExposesItsPort(t *testing.T) {
	if got, want := harness.Must(t, "inspect", "-f", "{{json .Config.ExposedPorts}}", harness.Image()), `{"5002/tcp":{}}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if !strings.Contains(documentation(t), "5002/tcp") {
		t.Error("neither the README nor docs/ mentions 5002/tcp")
	}
}

// documentation is the text of the README and of docs/.
func documentation(t testing.TB) string {
	t.Helper()
	paths, _ := filepath.Glob(filepath.Join(harness.Root(t), "docs", "*.md"))
	var text strings.Builder
	for _, path := range append(paths, filepath.Join(harness.Root(t), "README.md")) {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(content)
	}
	return text.String()
}
