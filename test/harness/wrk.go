package harness

import (
	"bytes"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// Wrk loads url with wrk: that many clients, each of which keeps its connection, for that many whole seconds.
// Wrk repeats nothing: a request on a connection that is closed before the response has failed. A prefix is a
// command that runs wrk, with its arguments. The returned function waits for the end.
func Wrk(t testing.TB, url string, clients int, during time.Duration, prefix ...string) (wait func() (requests, failed int, rate float64)) {
	t.Helper()
	command := append(prefix, "wrk", "-t1", fmt.Sprintf("-c%d", clients), fmt.Sprintf("-d%.0fs", during.Seconds()), "--timeout", "10s", url)
	cmd := exec.Command(command[0], command[1:]...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatalf("wrk is needed (apt-get install wrk): %v", err)
	}
	AtEnd(t, func() { cmd.Process.Kill() })
	return func() (requests, failed int, rate float64) {
		t.Helper()
		err := cmd.Wait()
		find := func(pattern string) (n float64) {
			if match := regexp.MustCompile(pattern).FindSubmatch(output.Bytes()); match != nil {
				n, _ = strconv.ParseFloat(string(match[1]), 64)
			}
			return n
		}
		requests = int(find(`(\d+) requests in`))
		if err != nil || requests == 0 {
			t.Fatalf("wrk: %v\n%s", err, output.Bytes())
		}
		for _, pattern := range []string{`connect (\d+)`, `read (\d+)`, `write (\d+)`, `timeout (\d+)`, `Non-2xx or 3xx responses: (\d+)`} {
			failed += int(find(pattern))
		}
		return requests, failed, find(`Requests/sec:\s+([\d.]+)`)
	}
}
