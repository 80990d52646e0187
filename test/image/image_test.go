//go:build image

// Package image tests the image IMAGE, which must exist, in a real container engine. Nothing is skipped,
// because a test that needs an engine and finds none has failed. tools/compare checks what the image holds.
package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

const binaryPath = "usr/local/bin/devops-info-service"

func TestMain(m *testing.M) { harness.Main(m) }

// The command of the check is the image's own. Only its timing is shorter, so that the tests are.
var frequentChecks = []string{"--health-interval", "1s", "--health-retries", "1"}

// waitForVerdict waits until the engine comes to that verdict by the image's own HEALTHCHECK.
func waitForVerdict(t testing.TB, name, want string) {
	t.Helper()
	var got string
	for deadline := time.Now().Add(time.Minute); got != want; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the engine's verdict is %q, want %q\n%s\n%s", got, want,
				harness.Must(t, "inspect", "-f", "{{json .State.Health}}", name), harness.Must(t, "logs", name))
		}
		got = harness.Must(t, "inspect", "-f", "{{.State.Health.Status}}", name)
	}
}

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
			waitForVerdict(t, harness.Container(t, harness.Image(), arguments...), "healthy")
		})
	}
}

func TestImageTurnsUnhealthyWhenStopped(t *testing.T) {
	name := harness.Container(t, harness.Image(), frequentChecks...)
	waitForVerdict(t, name, "healthy")
	harness.Must(t, "kill", "-s", "STOP", name)
	waitForVerdict(t, name, "unhealthy")
	harness.Must(t, "kill", "-s", "CONT", name)
	waitForVerdict(t, name, "healthy")
}

func TestImageUser(t *testing.T) {
	name, _ := harness.Published(t, harness.Image())
	for command, want := range map[string]string{
		"whoami": "mariaappgo",
		"id":     "uid=10001(mariaappgo) gid=10001(mariaappgo) groups=10001(mariaappgo)",
	} {
		if got := harness.Must(t, "exec", name, command); got != want {
			t.Errorf("docker exec … %s: %q, want %q", command, got, want)
		}
	}
	writable := strings.Fields(harness.Must(t, "exec", name, "sh", "-c",
		`find / -xdev \( -type d -o -type f \) 2>/dev/null | while read -r path; do [ -w "$path" ] && echo "$path"; done; true`))
	sort.Strings(writable)
	if got := strings.Join(writable, " "); got != "/tmp /var/tmp" {
		t.Errorf("the user can write %s, want only /tmp and /var/tmp", got)
	}
}

func TestImageMetadata(t *testing.T) {
	var config struct {
		User         string
		ExposedPorts map[string]any
		Labels       map[string]string
	}
	if err := json.Unmarshal([]byte(harness.Must(t, "inspect", "-f", "{{json .Config}}", harness.Image())), &config); err != nil {
		t.Fatal(err)
	}
	printed := strings.Fields(harness.Must(t, "run", "--rm", harness.Image(), "-version"))
	label := func(name string) string { return config.Labels["org.opencontainers.image."+name] }
	for _, test := range []struct{ name, got, want string }{
		{"user", config.User, "10001:10001"}, // by number, so that Kubernetes can tell that it is not root
		{"ports", fmt.Sprint(config.ExposedPorts), "map[5002/tcp:map[]]"},
		{"title", label("title"), "devops-info-service"},
		{"description", label("description"), "DevOps course info service"},
		{"version", label("version"), printed[1]},
		{"revision", "(" + label("revision") + ")", printed[2]},
	} {
		if test.got != test.want && !(test.name == "revision" && label("revision") == "") {
			t.Errorf("%s: got %q, want %q", test.name, test.got, test.want)
		}
	}
}

// logLine returns the container's first log line with that message.
func logLine(t testing.TB, name, message string) map[string]any {
	t.Helper()
	return harness.WaitForLog(t, containerLog{t, name}, message, 1)[0]
}

// containerLog prints as the log of the container.
type containerLog struct {
	testing.TB
	name string
}

func (l containerLog) String() string { return harness.Must(l.TB, "logs", l.name) }

func TestImageStop(t *testing.T) {
	name, address := harness.Published(t, harness.Image())
	if got := harness.Must(t, "exec", name, "cat", "/proc/1/cmdline"); got != "/"+binaryPath+"\x00" {
		t.Errorf("process 1 is %q", got)
	}
	conn := harness.Dial(t, address)
	reader := bufio.NewReader(conn)
	// In one packet, so that the half was read when the response to the whole one arrives.
	harness.Write(t, conn, harness.SmallRequest+harness.HalfRequest)
	harness.Receive(t, reader, "GET")
	stopped := make(chan error)
	go func() { stopped <- exec.Command(harness.Engine(), "stop", name).Run() }()
	logLine(t, name, "stopping")
	harness.Write(t, conn, harness.RestOfRequest)
	if response, body := harness.Receive(t, reader, "GET"); response.StatusCode != 200 || !strings.HasSuffix(body, "}\n") {
		t.Errorf("got %d %q, want 200 and the whole body", response.StatusCode, body)
	}
	if err := <-stopped; err != nil {
		t.Errorf("docker stop: %v", err)
	}
	logLine(t, name, "stopped")
	if got := harness.Must(t, "inspect", "-f", "{{.State.ExitCode}}", name); got != "0" {
		t.Errorf("got exit code %s, want 0\n%s", got, harness.Must(t, "logs", name))
	}
}

func TestImageTimezone(t *testing.T) {
	file, err := harness.ZoneArchive(t).Open("Asia/Tokyo")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	zone, err := io.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	tokyo := filepath.Join(t.TempDir(), "localtime")
	if err := os.WriteFile(tokyo, zone, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		arguments      []string
		want, timeEnds string
	}{
		"default":         {nil, "UTC", "Z"},
		"TZ":              {[]string{"-e", "TZ=Pacific/Chatham"}, "Pacific/Chatham", ":45"},
		"/etc/localtime":  {[]string{"-v", tokyo + ":/etc/localtime:ro"}, "JST", "+09:00"},
		"an empty TZ too": {[]string{"-v", tokyo + ":/etc/localtime:ro", "-e", "TZ="}, "JST", "+09:00"},
	} {
		_, address := harness.Published(t, harness.Image(), test.arguments...)
		got := harness.GetInfo(t, address)
		if got.Runtime.Timezone != test.want || !strings.HasSuffix(got.Runtime.CurrentTime, test.timeEnds) {
			t.Errorf("%s: got %+v, want %s and a time that ends in %s", name, got.Runtime, test.want, test.timeEnds)
		}
		if !strings.HasPrefix(got.System.PlatformVersion, "Alpine Linux v") {
			t.Errorf("%s: got the platform version %q, want Alpine's", name, got.System.PlatformVersion)
		}
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
	harness.AtEnd(t, func() { exec.Command(harness.Engine(), "rm", "-f", name).Run() })
	harness.Must(t, "create", "--name", name, image, "/never-run") // because a base has no command of its own
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

func dockerfile(t testing.TB) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(harness.Root(t), "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestImageAddsOnlyTheServiceToItsBase(t *testing.T) {
	base := files(t, regexp.MustCompile(`(?m)^ARG RUNTIME_IMAGE=(.+)$`).FindStringSubmatch(dockerfile(t))[1])
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

// build builds the project by that Dockerfile, on scratch, and returns the image's name.
func build(t testing.TB, dockerfile string, arguments ...string) string {
	t.Helper()
	name := harness.Unique()
	harness.AtEnd(t, func() { exec.Command(harness.Engine(), "rmi", "-f", name).Run() })
	path := filepath.Join(t.TempDir(), "Dockerfile")
	if err := os.WriteFile(path, []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	arguments = append([]string{"build", "-t", name, "-f", path, "--build-arg", "RUNTIME_IMAGE=scratch"}, arguments...)
	harness.Must(t, append(arguments, harness.Root(t))...)
	return name
}

func TestImageBinaryIsReproducible(t *testing.T) {
	original := dockerfile(t)
	uncached := regexp.MustCompile(`--mount=type=cache\S*`).ReplaceAllString(original, "") // --no-cache does not empty it
	moved := strings.Replace(uncached, "WORKDIR /src\n", "WORKDIR /somewhere/else\n", 1)
	if uncached == original || moved == uncached {
		t.Fatal("Dockerfile has no cache mount or no WORKDIR /src")
	}
	var sums [2][sha256.Size]byte
	for i, dockerfile := range []string{uncached, moved} {
		sums[i] = sha256.Sum256(files(t, build(t, dockerfile, "--no-cache"))[binaryPath].content)
	}
	if sums[0] != sums[1] {
		t.Errorf("built in two folders: sha256 %x and %x", sums[0], sums[1])
	}
}

func TestImageOnScratch(t *testing.T) {
	name, address := harness.Published(t, build(t, dockerfile(t)), append(frequentChecks, "-e", "TZ=Pacific/Chatham")...)
	waitForVerdict(t, name, "healthy")
	got := harness.GetInfo(t, address)
	if got.System.PlatformVersion != "linux" || got.Runtime.Timezone != "Pacific/Chatham" || !strings.HasSuffix(got.Runtime.CurrentTime, ":45") {
		t.Errorf("got %+v, want linux and the time of Pacific/Chatham", got)
	}
}
