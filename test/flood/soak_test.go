//go:build flood

package flood

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

// What TestSoak allows.
const (
	failuresAllowed = 1.0 / 100_000
	slowestAllowed  = time.Second
	memoryAllowed   = 4 << 20 // bytes more at the end than at the start, which Go has not returned to the kernel yet
)

const attackers = 3000

// turns are the attacks of TestSoak.
var turns = []struct {
	name    string
	attack  harness.Attack
	returns bool // each attacker, a second after its connection has ended
}{
	{"idle connections", harness.Idle, false},
	{"half headers", harness.SendHalf(harness.ShortFields(4<<10, false)), false},
	{"clients that never read", harness.NeverRead, false},
	{"stalled uploads", harness.StallUpload, false},
	{"resets", harness.Reset, true},
}

// TestSoak serves 100 honest clients and a probe each second from a container of MEMORY and half a processor,
// for the time SOAK, while 3,000 attackers take turns in the ways to hold on to it. With BARE, bare net/http
// goes through the same, to compare; make soak sets all three.
func TestSoak(t *testing.T) {
	during, err := time.ParseDuration(os.Getenv("SOAK"))
	if err != nil {
		t.Fatalf("SOAK: %v", err)
	}
	memory := os.Getenv("MEMORY")
	limits := []string{"--cpus=0.5", "--memory=" + memory, "--memory-swap=" + memory}

	t.Run("service", func(t *testing.T) {
		name := harness.Container(t, harness.Image(), limits...)
		address := harness.ContainerIP(t, name) + ":5002"
		harness.WaitForHealth(t, address)
		s := soak(t, name, address, during)
		if s.killed {
			t.Fatal("the container ended")
		}
		if allowed := int(float64(s.honest.Requests) * failuresAllowed); s.honest.Failed > allowed {
			t.Errorf("%d of %d requests failed, want at most %d", s.honest.Failed, s.honest.Requests, allowed)
		}
		if s.probes.Failed > 0 || s.probes.Slowest > slowestAllowed {
			t.Errorf("the slowest probe took %v and %d failed for ten seconds, want each within %v", s.probes.Slowest, s.probes.Failed, slowestAllowed)
		}
		if s.end > s.start+memoryAllowed {
			t.Errorf("memory was %.1f MiB at the start and is %.1f MiB at the end, want at most %d MiB more", mib(s.start), mib(s.end), memoryAllowed>>20)
		}
	})
	if os.Getenv("BARE") == "" {
		return
	}
	t.Run("bare net/http", func(t *testing.T) {
		name, address := startFloor(t, buildFloor(t), append([]string{"-e", "GOMAXPROCS=1"}, limits...)...)
		soak(t, name, address, during)
	})
}

// soaked is what soak has seen. Memory is in bytes and includes the kernel's for TCP.
type soaked struct {
	honest, probes   harness.Report
	start, peak, end int64
	killed           bool
}

// soak attacks the container for that long, or until it ends, and prints what happens.
func soak(t *testing.T, name, address string, during time.Duration) (s soaked) {
	t.Helper()
	usage := memoryOf(t, name)
	ended := make(chan struct{})
	engine := exec.Command(harness.Engine(), "wait", name)
	if err := engine.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		engine.Wait()
		close(ended)
	}()
	t.Cleanup(func() { engine.Process.Kill(); <-ended })
	// pause returns after that long, or earlier with false if the container has ended.
	pause := func(d time.Duration) bool {
		select {
		case <-ended:
			return false
		case <-time.After(d):
			return true
		}
	}

	stopHonest := harness.Clients{Address: address, N: 100, Kept: true}.Start(t)
	stopProbes := harness.Clients{Address: address, N: 1, Pause: time.Second}.Start(t)
	pause(3 * time.Second) // the honest clients' own memory is there at the start
	s.start, _ = usage()
	peak := watch(usage)
	t.Logf("memory at the start: %.1f MiB", mib(s.start))

	began := time.Now()
	turn := min(10*time.Second, during/time.Duration(len(turns)))
	for i := 0; !s.killed && time.Since(began) < during; i++ {
		kind := turns[i%len(turns)]
		over := time.Now().Add(min(turn, during-time.Since(began)))
		wait := attack(address, kind.attack, kind.returns, over)
		s.killed = !pause(time.Until(over))
		n, _ := usage()
		t.Logf("%3.0f s: %s; memory: %.1f MiB", time.Since(began).Seconds(), kind.name, mib(n))
		if !s.killed {
			wait()
		}
	}
	s.end, _ = usage()
	for deadline := time.Now().Add(20 * time.Second); s.end > s.start+memoryAllowed && time.Now().Before(deadline) && pause(100*time.Millisecond); {
		s.end, _ = usage()
	}
	s.peak = peak()
	s.killed = !pause(0)
	if s.killed {
		t.Logf("ended after %.0f s; killed for its memory: %s; at most %.1f MiB", time.Since(began).Seconds(),
			harness.Must(t, "inspect", "-f", "{{.State.OOMKilled}}", name), mib(s.peak))
		return s
	}
	s.probes, s.honest = stopProbes(), stopHonest()
	t.Logf("honest clients: %d requests, %.0f a second, %d failed %s", s.honest.Requests,
		float64(s.honest.Requests)/(time.Since(began).Seconds()+3), s.honest.Failed, mostFrequent(s.honest.Errors))
	t.Logf("probes: %d, the slowest took %.2f s (begun at %.0f s), %d failed; %d tries were repeated", s.probes.Requests,
		s.probes.Slowest.Seconds(), s.probes.SlowestBegan.Sub(began).Seconds(), s.probes.Failed, s.probes.Repeated)
	t.Logf("memory: %.1f MiB at the start, at most %.1f MiB, %.1f MiB at the end; not killed", mib(s.start), mib(s.peak), mib(s.end))
	return s
}

// attack opens the attackers' connections at once. Those that the service leaves open close when the turn is
// over. The returned function waits for that.
func attack(address string, attack harness.Attack, returns bool, over time.Time) (wait func()) {
	var clients sync.WaitGroup
	for i := 0; i < attackers; i++ {
		clients.Add(1)
		go func() {
			defer clients.Done()
			for first := true; first || returns && time.Now().Before(over); first = false {
				if conn, err := net.DialTimeout("tcp", address, time.Until(over)); err == nil {
					conn.SetDeadline(over)
					attack(conn.(*net.TCPConn))
					conn.Close()
				}
				if returns {
					time.Sleep(min(time.Second, time.Until(over)))
				}
			}
		}()
	}
	return clients.Wait
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// mostFrequent is a text of the errors, the most frequent first.
func mostFrequent(errors map[string]int) string {
	var texts []string
	for text := range errors {
		texts = append(texts, text)
	}
	sort.Slice(texts, func(i, j int) bool { return errors[texts[i]] > errors[texts[j]] })
	for i, text := range texts {
		texts[i] = fmt.Sprintf("%d × %s", errors[text], text)
	}
	return strings.Join(texts, "; ")
}
