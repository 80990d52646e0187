//go:build flood

// Package flood tests the service in a container, under clients that do not behave and under more honest
// ones than fit. It needs Docker, root to count the kernel's memory, wrk and hey.
package flood

import (
	"bytes"
	"fmt"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// In a container of 32 MiB and half a processor, 5,000 clients at once that do not behave neither hide
// /health nor take more memory than there is, with the kernel's memory for their connections counted.
// On a slow machine, the container gets more than half a processor.
func TestAttacksIn32MiB(t *testing.T) {
	const maxHeader = 16 << 10
	const quick, slow = 2 * time.Second, 5 * time.Second // slow where clients do not read

	// As large, and as expensive to encode, as a header field may be.
	expensive := "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + strings.Repeat("\"\x80", 7500) + "\r\n\r\n"
	half := shortFields(4<<10, false)
	request := "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + strings.Repeat("x", 700) + "\r\n\r\n"
	cpus := halfProcessor(t)
	for _, test := range []struct {
		name    string
		attack  attack
		slowest time.Duration
	}{
		{"idle", idle, quick},
		{"idle, and one leaves every 20 ms", leaveInTurn(20 * time.Millisecond), quick},
		{"a header byte a second", trickle, quick},
		{"requests without end, responses never read", neverRead(harness.SmallRequest), slow},
		{"half a header of 16 KiB in short fields", sendHalf(shortFields(maxHeader, false)), quick},
		{"a header of 16 KiB in short fields", sendWithoutReading(shortFields(maxHeader-100, true), false), slow},
		{"a header of 512 bytes in short fields", sendWithoutReading(shortFields(512, true), false), slow},
		{"one field of 15 KB, expensive to encode", sendWithoutReading([]byte(expensive), false), slow},
		{"half a header behind a whole one", sendHalf(append([]byte(harness.LargeRequest(600)), half...)), quick},
		{"a header that is too large", sendHalf([]byte(harness.LargeRequest(maxHeader + 1<<10))), quick},
		{"a large body that never comes", sendHalf([]byte(uploadHeader)), quick},
		{"the same after an unknown expectation", sendHalf([]byte(strings.Replace(uploadHeader, "Host", "Expect: x\r\nHost", 1))), quick},
		{"twenty requests at once, responses never read", sendWithoutReading(bytes.Repeat([]byte(request), 20), false), slow},
		{"eight requests and the end, responses never read", sendWithoutReading(bytes.Repeat([]byte(request), 8), true), slow},
	} {
		t.Run(test.name, func(t *testing.T) {
			untilOneSucceeds(t, func() (problem string) {
				name, address := start(t, cpus, "--memory=32m", "--memory-swap=32m")
				memory := memoryOf(t, name)
				probes := probe(t, address, 50*time.Millisecond)
				left := flood(address, 5000, 0, time.Now().Add(8*time.Second), test.attack, false)
				time.Sleep(6 * time.Second)
				seen, peak := probes(), memory("peak")
				t.Logf("%v; the peak of memory, with the kernel's for TCP, was %.1f MiB", seen, mib(peak))
				if peak >= 32<<20 {
					t.Error("want less than 32 MiB")
				}
				checkState(t, name)
				harness.Must(t, "rm", "-f", name)
				left()
				if seen.failed != nil || seen.slowest > test.slowest {
					return fmt.Sprintf("%v, want each to succeed within %v", seen, test.slowest)
				}
				return ""
			})
		})
	}
}

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
			load := func(program string, generate func(*testing.T, string, int) (int, int, float64)) {
				untilOneSucceeds(t, func() string {
					name, address := start(t, limits...)
					requests, failed, rate := generate(t, "http://"+address+"/health", test.clients)
					t.Logf("%s: %d requests, %d failed, %.0f a second", program, requests, failed, rate)
					checkState(t, name)
					harness.Must(t, "rm", "-f", name)
					if allowed := requests / 10_000; failed > allowed || test.fit && failed > 0 {
						return fmt.Sprintf("%s: %d of %d requests failed", program, failed, requests)
					}
					return ""
				})
			}
			load("wrk", wrk)
			load("hey", hey)
			if !test.fit {
				return
			}
			_, service := start(t, limits...)
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

// halfProcessor returns the option of docker run for half a processor. The limits of the attacks are for a machine on which
// bare net/http answers 5,000 connections in 0.6 s with that. On a slower one, the option is for more, up to a whole one.
func halfProcessor(t *testing.T) string {
	t.Helper()
	_, address := start(t, append(buildFloor(t), "--cpus=0.5")...)
	began := time.Now()
	url := "http://" + address + "/health"
	if output, err := exec.Command("hey", "-n", "5000", "-c", "100", "-disable-keepalive", url).CombinedOutput(); err != nil {
		t.Fatalf("hey (apt-get install hey): %v\n%s", err, output)
	}
	took := time.Since(began)
	cpus := min(1, max(0.5, 0.5*took.Seconds()/0.6))
	t.Logf("bare net/http with half a processor took %v for 5,000 connections; the containers get %.2f", took.Round(time.Millisecond), cpus)
	return fmt.Sprintf("--cpus=%.2f", cpus)
}

// buildFloor builds bare net/http with the Go of the service, which changes the rate. It returns the arguments
// with which start runs it in place of the service, with as many threads as the service in up to one CPU.
func buildFloor(t *testing.T) (arguments []string) {
	t.Helper()
	version := strings.Fields(harness.Must(t, "run", "--rm", harness.Image(), "-version"))
	path := harness.Build(t, "./test/floor", "GOTOOLCHAIN="+version[len(version)-2])
	health := `HEALTH={"status":"healthy","timestamp":"2026-01-02T03:04:05.678Z","uptime_seconds":12}` + "\n"
	return []string{"-v", path + ":/floor:ro", "--entrypoint", "/floor", "-e", "GOMAXPROCS=1", "-e", health}
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
	var example []byte
	// A line is "[status] count responses", or "[count] error".
	for _, line := range regexp.MustCompile(`(?m)^\s+\[(\d+)\]\s+(?:(\d+) responses|.*)$`).FindAllSubmatch(output, -1) {
		count, err := strconv.Atoi(string(line[2]))
		if err != nil {
			count, _ = strconv.Atoi(string(line[1]))
		}
		requests += count
		if err != nil || string(line[1]) != "200" {
			failed += count
			example = line[0]
		}
	}
	if failed > 0 {
		t.Logf("hey: for example %s", bytes.TrimSpace(example))
	}
	return requests, failed, rate
}

// start runs the image until the test ends, waits until it answers, and returns the container's name and
// its own address, which does not pass through the engine's proxy. The port is another each time, because the kernel
// keeps a client's port for a minute after a connection, and would run out of ports to connect from to the same one.
func start(t *testing.T, arguments ...string) (name, address string) {
	t.Helper()
	port := strconv.Itoa(10_000 + rand.Intn(20_000))
	name = harness.Container(t, harness.Image(), append([]string{"-e", "PORT=" + port}, arguments...)...)
	address = harness.Must(t, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name) + ":" + port
	harness.WaitForHealth(t, address)
	return name, address
}

// checkState expects that the container still runs.
func checkState(t *testing.T, name string) {
	t.Helper()
	if got := harness.Must(t, "inspect", "-f", "{{.State.Running}} {{.State.OOMKilled}} {{.RestartCount}}", name); got != "true false 0" {
		t.Errorf("running, killed for its memory, restarts: %s, want true false 0", got)
	}
}

// untilOneSucceeds runs try up to five times until it has no problem, because on a machine that is
// shared, one run may find it busy. What must hold on every machine, try reports itself.
func untilOneSucceeds(t *testing.T, try func() (problem string)) {
	t.Helper()
	const tries = 5
	for i := 1; !t.Failed(); i++ {
		problem := try()
		if problem == "" {
			return
		}
		t.Logf("try %d of %d: %s", i, tries, problem)
		if i == tries {
			t.Fail()
		}
	}
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// memoryOf returns what reads the container's memory in bytes, with the kernel's for TCP, now or at the peak.
// Version 2 of control groups includes that memory. Version 1 has to be asked for it, which needs root; its
// peak is the sum of two, so that it may be too high.
func memoryOf(t *testing.T, container string) (read func(when string) int64) {
	t.Helper()
	groups, err := os.ReadFile("/proc/" + harness.Must(t, "inspect", "-f", "{{.State.Pid}}", container) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var files map[string][]string
	if match := regexp.MustCompile(`(?m)^\d+:memory:(.+)$`).FindSubmatch(groups); match != nil {
		folder := "/sys/fs/cgroup/memory" + string(match[1])
		if err := os.WriteFile(folder+"/memory.kmem.tcp.limit_in_bytes", []byte(strconv.FormatInt(1<<40, 10)), 0o644); err != nil {
			t.Fatalf("cannot count the kernel's memory for TCP: %v", err)
		}
		files = map[string][]string{
			"now":  {folder + "/memory.usage_in_bytes", folder + "/memory.kmem.tcp.usage_in_bytes"},
			"peak": {folder + "/memory.max_usage_in_bytes", folder + "/memory.kmem.tcp.max_usage_in_bytes"},
		}
	} else if match := regexp.MustCompile(`(?m)^0::(.+)$`).FindSubmatch(groups); match != nil {
		folder := "/sys/fs/cgroup" + string(match[1])
		files = map[string][]string{"now": {folder + "/memory.current"}, "peak": {folder + "/memory.peak"}}
	}
	read = func(when string) (sum int64) {
		for _, file := range files[when] {
			text, _ := os.ReadFile(file) // fails if the container has ended, which the test notices
			n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			sum += n
		}
		return sum
	}
	if read("now") == 0 || read("peak") == 0 {
		t.Fatalf("cannot read the container's memory from %v", files)
	}
	return read
}

// attack is what one attacker does with its connection until the service closes it.
type attack func(*net.TCPConn)

// flood opens n connections, with that pause between two, and gives each to an attacker of its own. Those that the
// service leaves open fail when the flood is over. If they return, each connects again a second after it has left,
// until then. The returned function waits until all have ended.
func flood(address string, n int, pause time.Duration, over time.Time, attack attack, returns bool) (wait func()) {
	var attackers sync.WaitGroup
	for i := 0; i < n; i++ {
		time.Sleep(pause)
		attackers.Add(1)
		go func() {
			defer attackers.Done()
			for first := true; first || returns && time.Now().Before(over); first = false {
				// An error does not matter. What counts is that other clients are served.
				if conn, err := net.DialTimeout("tcp", address, time.Until(over)); err == nil {
					conn.SetDeadline(over)
					conn.(*net.TCPConn).SetLinger(0) // so that its port is free again at once
					attack(conn.(*net.TCPConn))
					conn.Close()
				}
				if returns {
					time.Sleep(min(time.Second, time.Until(over)))
				}
			}
		}()
	}
	return attackers.Wait
}

// idle sends nothing.
func idle(conn *net.TCPConn) { conn.Read(make([]byte, 1)) }

// leaveInTurn sends nothing. One client after the other leaves, so that those in line get its slot.
func leaveInTurn(period time.Duration) attack {
	var left atomic.Int64
	return func(conn *net.TCPConn) {
		conn.SetReadDeadline(time.Now().Add(time.Duration(left.Add(1)) * period))
		conn.Read(make([]byte, 1))
	}
}

// trickle sends a request that never ends, one byte a second.
func trickle(conn *net.TCPConn) {
	for _, b := range []byte("GET / HTTP/1.1\r\nX-Slow: " + strings.Repeat("x", 60)) {
		if _, err := conn.Write([]byte{b}); err != nil {
			return
		}
		time.Sleep(time.Second)
	}
}

// neverRead sends as many requests as the connection takes and reads nothing.
func neverRead(request string) attack {
	requests := []byte(strings.Repeat(request, 1+(32<<10)/len(request)))
	return func(conn *net.TCPConn) {
		conn.SetReadBuffer(1)
		for err := error(nil); err == nil; {
			_, err = conn.Write(requests)
		}
	}
}

// sendHalf sends half a request and then waits.
func sendHalf(half []byte) attack {
	return func(conn *net.TCPConn) {
		conn.Write(half)
		conn.Read(make([]byte, 1))
	}
}

// sendWithoutReading sends whole requests once and reads nothing for five seconds. A client that closes its own
// end lets the service's kernel take all responses, and its memory holds them until they are read.
func sendWithoutReading(requests []byte, closeEnd bool) attack {
	return func(conn *net.TCPConn) {
		conn.SetReadBuffer(1)
		conn.Write(requests)
		if closeEnd {
			conn.CloseWrite()
		}
		time.Sleep(5 * time.Second)
	}
}

const uploadHeader = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"

// stallUpload sends a byte of a body a second, whatever the response, until the connection is reset.
func stallUpload(conn *net.TCPConn) {
	_, err := conn.Write([]byte(uploadHeader))
	for ; err == nil; _, err = conn.Write([]byte("x")) {
		time.Sleep(time.Second)
	}
}

// reset sends a request and resets the connection, as every attacker does in the end.
func reset(conn *net.TCPConn) { conn.Write([]byte(harness.SmallRequest)) }

// shortFields is a request of about size bytes whose header fields are as short as different names
// can be, which costs net/http the most memory. It lacks the end of the header unless complete.
func shortFields(size int, complete bool) []byte {
	request := []byte("GET / HTTP/1.1\r\nHost: localhost\r\n")
	for i := 0; len(request) < size-len("aaa:\n")-len("\r\n"); i++ {
		request = append(request, byte('a'+i%26), byte('a'+i/26%26), byte('a'+i/26/26%26), ':', '\n')
	}
	if complete {
		request = append(request, "\r\n"...)
	}
	return request
}
