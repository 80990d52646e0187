//go:build image

package image

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

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

// get returns the body of a 200.
func get(client *http.Client, url string) (body []byte, err error) {
	response, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", response.StatusCode)
	}
	return io.ReadAll(response.Body)
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

	stop := make(chan bool)
	var clients sync.WaitGroup
	var sentCount, failedCount atomic.Int64
	for i := 0; i < 8; i++ {
		clients.Add(1)
		go func() {
			defer clients.Done()
			client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
			pace := time.NewTicker(20 * time.Millisecond) // about 400 requests a second from all
			defer pace.Stop()
			for {
				select {
				case <-stop:
					return
				case <-pace.C:
				}
				sentCount.Add(1)
				if _, err := get(client, front+"/"); err != nil && failedCount.Add(1) == 1 {
					t.Logf("SHUTDOWN_DELAY=%s: the first failure: %v", delay, err)
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
	close(stop)
	clients.Wait()
	t.Logf("SHUTDOWN_DELAY=%s: %d requests, %d failed", delay, sentCount.Load(), failedCount.Load())
	return sentCount.Load(), failedCount.Load()
}
