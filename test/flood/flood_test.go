//go:build flood

// Package flood tests the service under floods of connections, and what has to wait for the service's
// timeouts. make test-flood runs it.
package flood

import (
	"bufio"
	"strings"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// Limits of the service that these tests expect.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	writeTimeout      = 10 * time.Second
	maxHeaderBytes    = 16 << 10
)

const connections = 2000

// How long a probe may take, depending on what the flood costs.
const (
	quick = time.Second     // memory and connections
	busy  = 5 * time.Second // processor time
)

// expectProbes probes /health for the time during. Each probe may take limit, and ten times as long
// under the race detector.
func expectProbes(t *testing.T, address string, during, limit time.Duration) {
	t.Helper()
	if harness.RaceEnabled() {
		limit *= 10
	}
	if slowest := harness.Probe(t, address, during); slowest > limit {
		t.Errorf("the slowest probe took %v, want %v at most", slowest, limit)
	}
}

func TestSlowHeadersAreClosedAndHealthAnswersWithin1s(t *testing.T) {
	p, address := harness.Launch(t)
	before := harness.Memory(t, p.Cmd.Process.Pid, "RssAnon")
	began := time.Now()
	wait := harness.Flood(t, address, connections, harness.Trickle)
	expectProbes(t, address, 3*time.Second, quick)
	t.Logf("RssAnon was %d KB and is %d KB", before/1024, harness.Memory(t, p.Cmd.Process.Pid, "RssAnon")/1024)
	wait()
	// readTimeout would close them too, but later. All of them began within about a second.
	if took := time.Since(began); took < readHeaderTimeout || took >= readTimeout {
		t.Errorf("the last connection was closed after %v, want about %v", took, readHeaderTimeout)
	}
}

func TestClientsThatNeverReadAreClosedAndHealthAnswersWithin5s(t *testing.T) {
	p, address := harness.Launch(t)
	before := harness.Memory(t, p.Cmd.Process.Pid, "RssAnon")
	began := time.Now()
	wait := harness.Flood(t, address, connections, harness.NeverRead)
	expectProbes(t, address, 5*time.Second, busy)
	t.Logf("RssAnon was %d KB and is %d KB", before/1024, harness.Memory(t, p.Cmd.Process.Pid, "RssAnon")/1024)
	wait()
	// With few processors, it takes a while until all of them have sent requests.
	if took := time.Since(began); took > 4*writeTimeout {
		t.Errorf("the last connection was closed after %v, want %v at most", took, 4*writeTimeout)
	}
}

// Without the limit on header lines, 16 KiB of short fields cost 40 times the memory at the start.
func TestHalfRequestsCostLittleMemory(t *testing.T) {
	for name, half := range map[string][]byte{
		"512 bytes of short fields": harness.ShortFields(512, false),
		"4 KiB of short fields":     harness.ShortFields(4<<10, false),
		"16 KiB of short fields":    harness.ShortFields(maxHeaderBytes, false),
		"16 KiB in one field":       []byte("GET / HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", maxHeaderBytes-100)),
	} {
		t.Run(name, func(t *testing.T) {
			p, address := harness.Launch(t)
			before := harness.Memory(t, p.Cmd.Process.Pid, "VmHWM")
			wait := harness.Flood(t, address, connections, harness.SendHalf(half))
			expectProbes(t, address, 2*time.Second, quick)
			after := harness.Memory(t, p.Cmd.Process.Pid, "VmHWM")
			t.Logf("resident were %d KB and at most %d KB", before/1024, after/1024)
			perConnection := (after - before) / connections
			if limit := 96 << 10; perConnection > limit {
				t.Errorf("each connection cost %d KB, want %d KB at most", perConnection/1024, limit/1024)
			}
			p.Cmd.Process.Kill()
			wait()
		})
	}
}

// Header sizes up to the limit are served at once while many clients send theirs slowly.
func TestLargeRequestsDoNotWaitForSlowOnes(t *testing.T) {
	_, address := harness.Launch(t)
	slow := []byte("GET / HTTP/1.1\r\nHost: localhost\r\nCookie: " + strings.Repeat("c", 1<<10))
	wait := harness.Flood(t, address, connections, harness.SendHalf(slow))
	kept := harness.Dial(t, address)
	reader := bufio.NewReader(kept)
	for i := 0; i < 100; i++ {
		for _, size := range []int{512, 4 << 10, 10_000, maxHeaderBytes} {
			began := time.Now()
			harness.Write(t, kept, harness.LargeRequest(size))
			if response, _ := harness.Receive(t, reader, "GET"); response.StatusCode != 200 || response.Close {
				t.Fatalf("%d bytes: got %d, close %v, want 200 and the connection kept", size, response.StatusCode, response.Close)
			}
			if took := time.Since(began); took > readHeaderTimeout/2 {
				t.Errorf("%d bytes: took %v, want far less than the %v that the slow ones may take", size, took, readHeaderTimeout)
			}
		}
	}
	wait()
}
