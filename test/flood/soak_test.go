//go:build flood

package flood

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

// turns are the attacks of TestSoak. In the others the attackers hold on to their connections.
var turns = []struct {
	name    string
	attack  attack
	returns bool
}{
	{"idle connections", idle, false},
	{"half headers", sendHalf(shortFields(4<<10, false)), false},
	{"clients that never read", neverRead, false},
	{"stalled uploads", stallUpload, false},
	{"resets", reset, true},
}

// moreMemory in bytes may be in use at the end, because Go returns it to the kernel late.
const moreMemory = 4 << 20

// TestSoak serves 100 honest clients and a probe each second in MEMORY and half a processor, for the time
// SOAK, while 3,000 attackers take turns. With BARE, it shows how bare net/http does.
func TestSoak(t *testing.T) {
	during, err := time.ParseDuration(os.Getenv("SOAK"))
	if err != nil {
		t.Fatalf("SOAK: %v", err)
	}
	memory := os.Getenv("MEMORY")
	limits := []string{"--cpus=0.5", "--memory=" + memory, "--memory-swap=" + memory}
	t.Run("service", func(t *testing.T) {
		const oneFailureIn, slowest = 100_000, time.Second
		name, address := start(t, limits...)
		got := soak(t, name, address, during)
		if allowed := got.honest.Requests / oneFailureIn; got.honest.Failed > allowed {
			t.Errorf("%d of %d requests failed, want at most %d", got.honest.Failed, got.honest.Requests, allowed)
		}
		if got.probes.Failed > 0 || got.probes.Slowest > slowest {
			t.Errorf("the slowest probe took %v and %d failed, want all within %v", got.probes.Slowest, got.probes.Failed, slowest)
		}
		if got.end > got.start+moreMemory {
			t.Errorf("memory was %.1f MiB at the start and is %.1f MiB at the end, want at most %.0f MiB more", mib(got.start), mib(got.end), mib(moreMemory))
		}
		checkState(t, name)
	})
	if os.Getenv("BARE") != "" {
		t.Run("bare net/http", func(t *testing.T) {
			name, address := start(t, append(limits, buildFloor(t)...)...)
			soak(t, name, address, during)
		})
	}
}

// soaked is what soak has seen. Memory is in bytes, with the kernel's for TCP.
type soaked struct {
	honest, probes report
	start, end     int64
}

// soak attacks the container for that long, or until it ends, and logs what happens.
func soak(t *testing.T, name, address string, during time.Duration) (got soaked) {
	t.Helper()
	usage := memoryOf(t, name)
	wait := exec.Command(harness.Engine(), "wait", name)
	if err := wait.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- wait.Wait() }()
	t.Cleanup(func() { wait.Process.Kill() })

	honest := clients{Address: address, N: 100, Kept: true}.start(t)
	probes := clients{Address: address, N: 1, Pause: time.Second}.start(t)
	began := time.Now()
	time.Sleep(2 * time.Second) // until the honest clients have the memory that they need
	got.start, _ = usage()
	peak := watch(usage)
	stop := time.Now().Add(during)
	for i := 0; time.Now().Before(stop); i++ {
		turn := turns[i%len(turns)]
		over := time.Now().Add(min(10*time.Second, during/time.Duration(len(turns)), time.Until(stop)))
		left := flood(address, 3000, over, turn.attack, turn.returns)
		select {
		case <-ended:
			t.Logf("%s: the container has ended after %.0f s; killed for its memory: %s; at most %.1f MiB were used", turn.name,
				time.Since(began).Seconds(), harness.Must(t, "inspect", "-f", "{{.State.OOMKilled}}", name), mib(peak()))
			return got
		case <-time.After(time.Until(over)):
		}
		left()
		n, _ := usage()
		t.Logf("%3.0f s: after %s; %.1f MiB", time.Since(began).Seconds(), turn.name, mib(n))
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if got.end, _ = usage(); got.end <= got.start+moreMemory || time.Now().After(deadline) {
			break
		}
	}
	got.honest, got.probes = honest(), probes()
	t.Logf("honest clients, %.0f requests a second: %v", float64(got.honest.Requests)/time.Since(began).Seconds(), got.honest)
	t.Logf("probes: %v, begun at %.0f s", got.probes, got.probes.SlowestBegan.Sub(began).Seconds())
	t.Logf("memory: %.1f MiB at the start, at most %.1f MiB, %.1f MiB at the end", mib(got.start), mib(peak()), mib(got.end))
	return got
}
