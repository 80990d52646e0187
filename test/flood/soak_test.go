//go:build flood

package flood

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

// turns are the attacks of TestSoak. In the others than resets, the attackers hold on to their connections.
var turns = []struct {
	name    string
	attack  attack
	returns bool
}{
	{"idle connections", idle, false},
	{"half headers", sendHalf(shortFields(4<<10, false)), false},
	{"clients that never read", neverRead(harness.SmallRequest), false},
	{"stalled uploads", stallUpload, false},
	{"resets", reset, true},
}

// TestSoak serves 100 honest clients and a probe each second in MEMORY and half a processor, while 3,000 attackers
// take turns for the time SOAK. They come one each millisecond; TestAttacksIn32MiB shows them all at once. With
// BARE, it shows how bare net/http does.
func TestSoak(t *testing.T) {
	during, err := time.ParseDuration(os.Getenv("SOAK"))
	if err != nil {
		t.Fatalf("SOAK: %v", err)
	}
	memory := os.Getenv("MEMORY")
	limits := []string{"--cpus=0.5", "--memory=" + memory, "--memory-swap=" + memory}
	name, address := start(t, limits...)
	soak(t, name, address, during, t.Errorf)
	checkState(t, name)
	harness.Must(t, "rm", "-f", name)
	if os.Getenv("BARE") != "" {
		t.Log("bare net/http:")
		name, address := start(t, append(limits, buildFloor(t)...)...)
		soak(t, name, address, during, t.Logf)
	}
}

// soak attacks the container for that long, or for the turn in which it ends. It passes what it does not allow to complain.
func soak(t *testing.T, name, address string, during time.Duration, complain func(string, ...any)) {
	t.Helper()
	const (
		before, after  = 2 * time.Second, 20 * time.Second // without an attack; memory has that long to fall
		oneFailureIn   = 100_000
		slowestAllowed = time.Second
		moreMemory     = 4 << 20 // bytes at the end, because Go returns memory to the kernel late
	)
	memory := memoryOf(t, name)
	probes := probe(t, address, time.Second)
	began := time.Now()
	honest := harness.Wrk(t, "http://"+address+"/health", 100, before+during+after)
	time.Sleep(before) // until the service has the memory that the honest clients need
	atStart := memory("now")
	for i := 0; time.Since(began) < before+during; i++ {
		turn := turns[i%len(turns)]
		over := time.Now().Add(min(10*time.Second, during/time.Duration(len(turns)), before+during-time.Since(began)))
		left := flood(address, 3000, time.Millisecond, over, turn.attack, turn.returns)
		time.Sleep(time.Until(over))
		left()
		t.Logf("%3.0f s: %s; %.1f MiB", time.Since(began).Seconds(), turn.name, mib(memory("now")))
		state := strings.Fields(harness.Must(t, "inspect", "-f", "{{.State.Running}} {{.State.OOMKilled}} {{.State.FinishedAt}}", name))
		if state[0] == "false" {
			ended, _ := time.Parse(time.RFC3339Nano, state[2])
			t.Logf("the container ended after %.0f s; killed for its memory: %s", ended.Sub(began).Seconds(), state[1])
			return
		}
	}
	requests, failed, rate := honest()
	seen, atEnd := probes(), memory("now")
	t.Logf("%d requests of honest clients, %.0f a second, %d failed", requests, rate, failed)
	t.Logf("%v, begun at %.0f s", seen, seen.slowestBegan.Sub(began).Seconds())
	t.Logf("memory, with the kernel's for TCP: %.1f MiB at the start, %.1f MiB at the end, at most %.1f MiB", mib(atStart), mib(atEnd), mib(memory("peak")))
	if failed > requests/oneFailureIn {
		complain("%d of %d requests failed, want at most 1 in %d", failed, requests, oneFailureIn)
	}
	if seen.failed != nil || seen.slowest > slowestAllowed {
		complain("%v, want each to succeed within %v", seen, slowestAllowed)
	}
	if atEnd > atStart+moreMemory {
		complain("%.1f MiB more were used at the end than at the start, want at most %d MiB", mib(atEnd-atStart), moreMemory>>20)
	}
}

// probes are health checks, as engines make them.
type probes struct {
	n            int
	slowest      time.Duration
	slowestBegan time.Time
	failed       error // for ten seconds
}

func (p probes) String() string {
	return fmt.Sprintf("%d probes, the slowest took %.2f s, failed: %v", p.n, p.slowest.Seconds(), p.failed)
}

// probe runs the service's -healthcheck with that pause between two, until the returned function is called. Each is a
// process of its own, which shares no processor time with the attackers'. A try that fails is repeated, as every
// health checker does, while the clock goes on, for ten seconds.
func probe(t *testing.T, address string, pause time.Duration) (stop func() probes) {
	t.Helper()
	binary := harness.Binary(t)
	host, port, _ := strings.Cut(address, ":")
	check := func() error {
		cmd := exec.Command(binary, "-healthcheck")
		cmd.Env = []string{"HOST=" + host, "PORT=" + port}
		return cmd.Run()
	}
	var seen probes
	stopping, stopped := make(chan bool), make(chan bool)
	go func() {
		defer close(stopped)
		for seen.failed == nil {
			began := time.Now()
			err := check()
			for err != nil && time.Since(began) < 10*time.Second {
				err = check()
			}
			seen.n, seen.failed = seen.n+1, err
			if took := time.Since(began); took > seen.slowest {
				seen.slowest, seen.slowestBegan = took, began
			}
			select {
			case <-stopping:
				return
			case <-time.After(pause):
			}
		}
	}()
	return func() probes {
		close(stopping)
		<-stopped
		return seen
	}
}
