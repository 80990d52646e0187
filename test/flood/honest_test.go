//go:build flood

package flood

import (
	"fmt"
	"os/exec"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

// Clients that behave are served as if there were no bound while they fit, and take turns when they
// do not.
func TestHonestClients(t *testing.T) {
	floor := buildFloor(t)
	for _, test := range []struct {
		name    string
		memory  []string
		clients int
		fit     bool // no request may fail, and the rate is compared with bare net/http's
	}{
		{"1000 clients in 128 MiB", []string{"--memory=128m", "--memory-swap=128m"}, 1000, true},
		{"5000 clients without a limit", nil, 5000, true},
		{"1000 clients in 64 MiB", []string{"--memory=64m", "--memory-swap=64m"}, 1000, false},
		{"1000 clients in 32 MiB", []string{"--memory=32m", "--memory-swap=32m"}, 1000, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			limits := append([]string{"--cpus=1"}, test.memory...)
			name, address := start(t, limits...)
			load := func(program string, generate func(*testing.T, string, int) (int, int, float64)) {
				untilOneSucceeds(t, func() string {
					requests, failed, rate := generate(t, "http://"+address+"/health", test.clients)
					t.Logf("%s: %d requests, %d failed, %.0f a second", program, requests, failed, rate)
					if allowed := requests / 10_000; failed > allowed || test.fit && failed > 0 {
						return fmt.Sprintf("%s: %d of %d requests failed", program, failed, requests)
					}
					return ""
				})
			}
			load("wrk", wrk)
			load("hey", hey)
			checkState(t, name)
			if !test.fit {
				return
			}
			_, service := start(t, limits...) // at another address, because hey has used up the ports to connect from to the first
			_, bare := start(t, append(limits, floor...)...)
			var ratios []float64
			for i := 0; i < 5; i++ {
				_, _, ours := wrk(t, "http://"+service+"/health", test.clients)
				_, failed, theirs := wrk(t, "http://"+bare+"/health", test.clients)
				if failed > 0 {
					t.Logf("bare net/http: %d requests failed", failed)
				}
				ratios = append(ratios, ours/theirs)
			}
			sort.Float64s(ratios)
			verdict := "missed, which fails nothing, because the machine may be shared"
			if ratios[2] >= 0.85 {
				verdict = "met"
			}
			t.Logf("throughput against bare net/http: %.2f, the median of %.2f; goal ≥ 0.85: %s", ratios[2], ratios, verdict)
		})
	}
}

// buildFloor builds bare net/http with the Go of the service, which changes the rate. It returns the arguments
// with which start runs it in place of the service, with as many threads as the service in up to one CPU.
func buildFloor(t *testing.T) (arguments []string) {
	t.Helper()
	version := strings.Fields(harness.Must(t, "run", "--rm", harness.Image(), "-version"))
	path := harness.Build(t, "./test/floor", "GOTOOLCHAIN="+version[len(version)-2])
	health := `HEALTH={"status":"healthy","timestamp":"2026-01-02T03:04:05.678Z","uptime_seconds":12}` + "\n"
	return []string{"-v", path + ":/floor:ro", "--entrypoint", "/floor", "-e", "GOMAXPROCS=1", "-e", "PORT=5002", "-e", health}
}

func wrk(t *testing.T, url string, clients int) (requests, failed int, rate float64) {
	t.Helper()
	return harness.Wrk(t, url, clients, 2*time.Second)()
}

// hey is like wrk, by another program. It keeps at most 500 connections and opens the others anew for each
// request, so for a moment it has more than its clients.
func hey(t *testing.T, url string, clients int) (requests, failed int, rate float64) {
	t.Helper()
	output, err := exec.Command("hey", "-c", strconv.Itoa(clients), "-z", "2s", "-t", "10", url).CombinedOutput()
	match := regexp.MustCompile(`Requests/sec:\s+([\d.]+)`).FindSubmatch(output)
	if err != nil || match == nil {
		t.Fatalf("hey (apt-get install hey): %v\n%s", err, output)
	}
	rate, _ = strconv.ParseFloat(string(match[1]), 64)
	// A line is "[status] count responses", or "[count] error".
	for _, line := range regexp.MustCompile(`(?m)^\s+\[(\d+)\]\s+(?:(\d+) responses)?`).FindAllSubmatch(output, -1) {
		count, err := strconv.Atoi(string(line[2]))
		if err != nil {
			count, _ = strconv.Atoi(string(line[1]))
		}
		requests += count
		if err != nil || string(line[1]) != "200" {
			failed += count
		}
	}
	return requests, failed, rate
}
