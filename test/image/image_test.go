//go:build image

// Package image tests the image IMAGE, which must exist, in a real container engine. Nothing is skipped,
// because a test that needs an engine and finds none has failed. tools/compare checks what the image holds.
package image

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// The command of the check is the image's own. Only its timing is shorter, so that the test is.
func TestImageHealth(t *testing.T) {
	for name, arguments := range map[string][]string{
		"as it is":         nil,
		"locked down":      {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none"},
		"PORT=8080":        {"-e", "PORT=8080"},
		"HOST=127.0.0.1":   {"-e", "HOST=127.0.0.1"},
		"HOST=::1":         {"-e", "HOST=::1", "--sysctl", "net.ipv6.conf.lo.disable_ipv6=0"},
		"an arbitrary uid": {"--user", "4711:4711"},
	} {
		arguments := append([]string{"--health-interval=1s", "--health-retries=1"}, arguments...)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			container := harness.Container(t, harness.Image(), arguments...)
			var verdict string
			for deadline := time.Now().Add(time.Minute); verdict != "healthy"; time.Sleep(100 * time.Millisecond) {
				verdict = harness.Must(t, "inspect", "-f", "{{.State.Health.Status}}", container)
				if time.Now().After(deadline) {
					t.Fatalf("the engine's verdict is %q\n%s\n%s", verdict,
						harness.Must(t, "inspect", "-f", "{{json .State.Health}}", container), harness.Must(t, "logs", container))
				}
			}
		})
	}
}

func TestImageUser(t *testing.T) {
	name, _ := harness.Published(t, harness.Image())
	const want = "mariaappgo\nuid=10001(mariaappgo) gid=10001(mariaappgo) groups=10001(mariaappgo)"
	if got := harness.Must(t, "exec", name, "sh", "-c", "whoami && id"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	writable := strings.Fields(harness.Must(t, "exec", name, "sh", "-c",
		`find / -xdev \( -type d -o -type f \) 2>/dev/null | while read -r path; do [ -w "$path" ] && echo "$path"; done; true`))
	sort.Strings(writable)
	if got := strings.Join(writable, " "); got != "/tmp /var/tmp" {
		t.Errorf("the user can write %s, want only /tmp and /var/tmp", got)
	}
}

func TestImageMetadata(t *testing.T) {
	version := harness.Must(t, "run", "--rm", harness.Image(), "-version")
	label := func(name string) string { return `{{index .Config.Labels "org.opencontainers.image.` + name + `"}}` }
	for format, want := range map[string]string{
		"{{.Config.User}}":              "10001:10001", // by number, so that Kubernetes can tell that it is not root
		"{{json .Config.ExposedPorts}}": `{"5002/tcp":{}}`,
		label("title"):                  "devops-info-service",
		label("description"):            "DevOps course info service",
		label("version"):                strings.Fields(version)[1],
	} {
		if got := harness.Must(t, "inspect", "-f", format, harness.Image()); got != want {
			t.Errorf("%s: got %s, want %s", format, got, want)
		}
	}
	if got := harness.Must(t, "inspect", "-f", label("revision"), harness.Image()); got != "" && !strings.Contains(version, "("+got+")") {
		t.Errorf("revision: got %s, and -version prints %s", got, version)
	}
}

func TestImageStop(t *testing.T) {
	name, _ := harness.Published(t, harness.Image())
	if got := harness.Must(t, "exec", name, "cat", "/proc/1/cmdline"); got != "/usr/local/bin/devops-info-service\x00" {
		t.Errorf("process 1 is %q", got)
	}
	harness.Must(t, "stop", name)
	code, log := harness.Must(t, "inspect", "-f", "{{.State.ExitCode}}", name), harness.Must(t, "logs", name)
	if code != "0" || !strings.Contains(log, `"msg":"stopped"`) {
		t.Errorf("got exit code %s, want 0, and stopped in the log\n%s", code, log)
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
		arguments []string
		want      string // in the response; current_time ends before the timezone
	}{
		{nil, `Z","timezone":"UTC"`},
		{[]string{"-e", "TZ=Pacific/Chatham"}, `:45","timezone":"Pacific/Chatham"`},
		{[]string{"-e", "TZ=", "-v", tokyo + ":/etc/localtime:ro"}, `+09:00","timezone":"JST"`}, // an empty TZ is the system's zone
	} {
		_, address := harness.Published(t, harness.Image(), test.arguments...)
		_, body := harness.Get(t, address, "/")
		for _, want := range []string{test.want, `"platform_version":"Alpine Linux v`} {
			if !strings.Contains(body, want) {
				t.Errorf("%v: got %s, want %s in it", test.arguments, body, want)
			}
		}
	}
}

func TestImageTellsItsLimits(t *testing.T) {
	name, address := harness.Published(t, harness.Image(), "--cpus=0.5", "--memory=64m")
	if _, body := harness.Get(t, address, "/"); !strings.Contains(body, `"cpu_limit":0.5,"memory_limit_bytes":67108864`) {
		t.Errorf("--cpus=0.5 --memory=64m: %s", body)
	}
	if log := harness.Must(t, "logs", name); !strings.Contains(log, `"gomaxprocs":1,`) {
		t.Errorf("--cpus=0.5: logged %s, want GOMAXPROCS 1", log)
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
	if got, want := strings.Join(slices.Compact(differ), " "), "/etc/group /etc/passwd /usr/local/bin/devops-info-service"; got != want {
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

// The load balancer hides nothing: no retry, no other server for a request that failed.
const haproxyConfig = `
defaults
  mode http
  timeout connect 2s
  timeout client 30s
  timeout server 30s
  retries 0
frontend front
  bind 127.0.0.1:%s
  stats enable
  stats uri /haproxy
  default_backend service
backend service
  balance roundrobin
  option httpchk GET /health
  default-server check inter 500ms fall 1 rise 1
  server s0 127.0.0.1:%s
  server s1 127.0.0.1:%s
  server s2 127.0.0.1:%s
`

// TestRollout replaces three containers behind HAProxy, one after the other, under load. With the
// drain no request fails; without it some do, which shows that the test would notice.
func TestRollout(t *testing.T) {
	if sent, failed := rollout(t, "3s"); failed != 0 {
		t.Errorf("with SHUTDOWN_DELAY=3s, %d of %d requests failed, want none", failed, sent)
	}
	if sent, failed := rollout(t, "0s"); failed == 0 {
		t.Errorf("with SHUTDOWN_DELAY=0s, none of %d requests failed: this test cannot tell", sent)
	}
}

// get returns the body of a 200, and whether there is one.
func get(client *http.Client, url string) (body []byte, ok bool) {
	response, err := client.Get(url)
	if err != nil {
		return nil, false
	}
	defer response.Body.Close()
	body, err = io.ReadAll(response.Body)
	return body, err == nil && response.StatusCode == http.StatusOK
}

// rollout returns how many requests were sent while all containers were replaced, and how many of
// them were not answered with 200.
func rollout(t *testing.T, delay string) (sent, failed int64) {
	// Ports that are free now, so that a container can come back on the port of the one before.
	var ports [4]string
	for i := range ports {
		ports[i] = harness.FreePort(t)
	}
	launch := func(port string) string {
		return harness.Container(t, harness.Image(), "-p", "127.0.0.1:"+port+":5002", "-e", "SHUTDOWN_DELAY="+delay)
	}
	names := []string{launch(ports[0]), launch(ports[1]), launch(ports[2])}

	config := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(config, []byte(fmt.Sprintf(haproxyConfig, ports[3], ports[0], ports[1], ports[2])), 0o644); err != nil {
		t.Fatal(err)
	}
	proxy := exec.Command("haproxy", "-db", "-f", config)
	output := &harness.Buffer{}
	proxy.Stdout, proxy.Stderr = output, output
	if err := proxy.Start(); err != nil {
		t.Fatalf("HAProxy is needed (apt-get install haproxy): %v", err)
	}
	stopProxy := sync.OnceFunc(func() { proxy.Process.Kill(); proxy.Wait() })
	harness.AtEnd(t, stopProxy)
	defer stopProxy()
	front := "http://127.0.0.1:" + ports[3]
	waitUntilUp := func(i int) {
		t.Helper()
		up := regexp.MustCompile(fmt.Sprintf(`(?m)^service,s%d,.*,UP,.*,L7OK,`, i))
		harness.WaitFor(t, fmt.Sprintf("server %d behind HAProxy; it says %s", i, output), func() bool {
			table, _ := get(http.DefaultClient, front+"/haproxy;csv")
			return up.Match(table)
		})
	}
	for i := range names {
		waitUntilUp(i)
	}

	var sentCount, failedCount atomic.Int64
	var stop atomic.Bool
	var clients sync.WaitGroup
	for i := 0; i < 8; i++ {
		clients.Add(1)
		go func() {
			defer clients.Done()
			client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
			for ; !stop.Load(); time.Sleep(20 * time.Millisecond) { // about 400 requests a second from all
				sentCount.Add(1)
				if _, ok := get(client, front+"/"); !ok {
					failedCount.Add(1)
				}
			}
		}()
	}
	for i := range names {
		harness.Must(t, "stop", names[i])
		if code := harness.Must(t, "inspect", "-f", "{{.State.ExitCode}}", names[i]); code != "0" {
			t.Errorf("server %d: exit code %s\n%s", i, code, harness.Must(t, "logs", names[i]))
		}
		harness.Must(t, "rm", names[i])
		names[i] = launch(ports[i])
		waitUntilUp(i)
	}
	stop.Store(true)
	clients.Wait()
	t.Logf("SHUTDOWN_DELAY=%s: %d requests, %d failed", delay, sentCount.Load(), failedCount.Load())
	return sentCount.Load(), failedCount.Load()
}
