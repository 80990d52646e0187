package harness

import (
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// Wrk loads url with wrk: that many clients, each of which keeps its connection, for that many whole seconds.
// A prefix is a command that runs wrk, with its arguments.
func Wrk(t testing.TB, url string, clients int, during time.Duration, prefix ...string) (requests, failed int, rate float64) {
	t.Helper()
	command := append(prefix, "wrk", "-t1", fmt.Sprintf("-c%d", clients), fmt.Sprintf("-d%.0fs", during.Seconds()), "--timeout", "10s", url)
	output, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("wrk: %v\n%s", err, output)
	}
	find := func(pattern string) (n float64) {
		if match := regexp.MustCompile(pattern).FindSubmatch(output); match != nil {
			n, _ = strconv.ParseFloat(string(match[1]), 64)
		}
		return n
	}
	requests = int(find(`(\d+) requests in`))
	if requests == 0 {
		t.Fatalf("wrk printed\n%s", output)
	}
	for _, pattern := range []string{`connect (\d+)`, `read (\d+)`, `write (\d+)`, `timeout (\d+)`, `Non-2xx or 3xx responses: (\d+)`} {
		failed += int(find(pattern))
	}
	return requests, failed, find(`Requests/sec:\s+([\d.]+)`)
}
