//go:build image

// Package image tests the image IMAGE, which must exist, in a real container engine. Nothing is skipped,
// because a test that needs an engine and finds none has failed. tools/compare checks what the image holds.
package image

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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
	for _, test := range []struct {
		arguments      []string
		want, timeEnds string
	}{
		{nil, "UTC", "Z"},
		{[]string{"-e", "TZ=Pacific/Chatham"}, "Pacific/Chatham", ":45"},
		{[]string{"-e", "TZ=", "-v", tokyo + ":/etc/localtime:ro"}, "JST", "+09:00"}, // an empty TZ is the system's zone
	} {
		_, address := harness.Published(t, harness.Image(), test.arguments...)
		got := harness.GetInfo(t, address)
		if got.Runtime.Timezone != test.want || !strings.HasSuffix(got.Runtime.CurrentTime, test.timeEnds) {
			t.Errorf("%v: got %+v, want %s and a time that ends in %s", test.arguments, got.Runtime, test.want, test.timeEnds)
		}
		if !strings.HasPrefix(got.System.PlatformVersion, "Alpine Linux v") {
			t.Errorf("got the platform version %q, want Alpine's", got.System.PlatformVersion)
		}
	}
}

func TestImageTellsItsLimits(t *testing.T) {
	name, address := harness.Published(t, harness.Image(), "--cpus=0.5", "--memory=64m")
	if _, body := harness.Get(t, address, "/"); !strings.Contains(body, `"cpu_limit":0.5,"memory_limit_bytes":67108864`) {
		t.Errorf("--cpus=0.5 --memory=64m: %s", body)
	}
	if got := logLine(t, name, "listening")["gomaxprocs"]; got != 1.0 {
		t.Errorf("--cpus=0.5: GOMAXPROCS %v, want 1", got)
	}
	_, address = harness.Published(t, harness.Image())
	if _, body := harness.Get(t, address, "/"); !strings.Contains(body, `"cpu_limit":null,"memory_limit_bytes":null`) {
		t.Errorf("without limits: %s", body)
	}
}

func TestImageAddsOnlyTheServiceToItsBase(t *testing.T) {
	dockerfile, err := os.ReadFile(filepath.Join(harness.Root(t), "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	base := string(regexp.MustCompile(`(?m)^ARG RUNTIME_IMAGE=(.+)$`).FindSubmatch(dockerfile)[1])
	// The engine mounts three files of its own.
	const list = `find / -xdev ! -path /etc/hostname ! -path /etc/hosts ! -path /etc/resolv.conf -exec stat -c '%n %F %a %u:%g %N' {} + &&
		find / -xdev -type f ! -path /etc/hostname ! -path /etc/hosts ! -path /etc/resolv.conf -exec sha256sum {} +`
	lines := func(image string) map[string]bool {
		found := map[string]bool{}
		for _, line := range strings.Split(harness.Must(t, "run", "--rm", "--user=0", "--entrypoint=sh", image, "-c", list), "\n") {
			found[line] = true
		}
		return found
	}
	was, is := lines(base), lines(harness.Image())
	if len(was) < 100 {
		t.Fatalf("the base has only %d lines", len(was))
	}
	var differ []string
	for line := range is {
		if !was[line] {
			differ = append(differ, regexp.MustCompile(`/\S+`).FindString(line))
		}
	}
	for line := range was {
		if !is[line] {
			differ = append(differ, regexp.MustCompile(`/\S+`).FindString(line))
		}
	}
	sort.Strings(differ)
	if got, want := strings.Join(slices.Compact(differ), " "), "/etc/group /etc/passwd /"+binaryPath; got != want {
		t.Errorf("differs from its base in\n%s, want\n%s", got, want)
	}
	for path, want := range map[string]string{
		"/etc/passwd": "mariaappgo:x:10001:10001:devops-info-service:/:/sbin/nologin",
		"/etc/group":  "mariaappgo:x:10001:",
	} {
		content := func(image string) string { return harness.Must(t, "run", "--rm", "--entrypoint=cat", image, path) }
		if got := content(harness.Image()); got != content(base)+"\n"+want {
			t.Errorf("%s is\n%s, want the base's and %s", path, got, want)
		}
	}
}
