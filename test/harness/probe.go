package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"devops-info-service/internal/healthcheck"
)

// With these variables set, to a duration and an address, Main is the process that Probe starts.
const (
	probeDuration = "PROBE_DURATION"
	probeAddress  = "PROBE_ADDRESS"
)

// Probe requests /health on new connections for that long, by the same code as -healthcheck. It does
// so from a process of its own, which does not share processor time with the attackers'. A try that
// fails is repeated, as every health checker does, while the clock goes on; after 10 seconds Probe
// fails. It returns how long the slowest success took. The package's TestMain must call Main.
func Probe(t testing.TB, address string, during time.Duration) (slowest time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), probeDuration+"="+during.String(), probeAddress+"="+address)
	output, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(output))
	if err != nil {
		t.Fatalf("probe: %v\n%s", err, text)
	}
	var n int
	var slowestText string
	if _, err := fmt.Sscanf(text, "%d probes, the slowest took %s", &n, &slowestText); err != nil || n == 0 {
		t.Fatalf("the probe printed %q (%v)", text, err)
	}
	if slowest, err = time.ParseDuration(slowestText); err != nil {
		t.Fatal(err)
	}
	t.Log(text)
	return slowest
}

// runProbe is the process that Probe starts. It returns its exit code.
func runProbe(during, address string) int {
	duration, err := time.ParseDuration(during)
	if err != nil {
		fmt.Println(err)
		return 2
	}
	var slowest time.Duration
	probes, repeated := 0, 0
	for end := time.Now().Add(duration); probes == 0 || time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		began := time.Now()
		for {
			err := healthcheck.Check(context.Background(), "tcp", address)
			if err == nil {
				break
			}
			if time.Since(began) > 10*time.Second {
				fmt.Printf("probe %d failed for %v: %v\n", probes, time.Since(began), err)
				return 1
			}
			repeated++
		}
		slowest = max(slowest, time.Since(began))
		probes++
	}
	fmt.Printf("%d probes, the slowest took %v (%d tries were repeated)\n", probes, slowest, repeated)
	return 0
}
