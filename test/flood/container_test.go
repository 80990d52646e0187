//go:build flood

package flood

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

// In a container of 32 MiB and half a processor, 5,000 clients at once that do not behave neither hide
// /health nor take more memory than there is, with the kernel's memory for their connections counted.
func TestAttacksIn32MiB(t *testing.T) {
	const memory, clients = 32 << 20, 5000
	const quick, slow = time.Second, 5 * time.Second // slow where the attack costs processor time
	const hold = 5 * time.Second

	// As large, and as expensive to encode, as a header field may be.
	expensive := "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + strings.Repeat("\"\x80", 7500) + "\r\n\r\n"
	half := harness.ShortFields(4<<10, false)
	request := "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + strings.Repeat("x", 700) + "\r\n\r\n"
	for _, test := range []struct {
		name    string
		attack  harness.Attack
		slowest time.Duration
	}{
		{"idle", harness.Idle, quick},
		{"a header byte a second", harness.Trickle, quick},
		{"requests without end, responses never read", harness.NeverRead, slow},
		{"half a header of 16 KiB in short fields", harness.SendHalf(harness.ShortFields(16<<10, false)), slow},
		{"a header of 16 KiB in short fields", harness.SendWithoutReading(harness.ShortFields(16<<10-100, true), hold), slow},
		{"a header of 512 bytes in short fields", harness.SendWithoutReading(harness.ShortFields(512, true), hold), slow},
		{"one field of 15 KB, expensive to encode", harness.SendWithoutReading([]byte(expensive), hold), slow},
		{"half a header behind a whole one", harness.SendHalf(append([]byte(harness.LargeRequest(600)), half...)), slow},
		{"a header that is too large", harness.SendHalf([]byte(harness.LargeRequest(17 << 10))), quick},
		{"a large body that never comes", harness.SendHalf([]byte("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")), quick},
		{"twenty requests at once, responses never read", harness.SendWithoutReading(bytes.Repeat([]byte(request), 20), hold), slow},
	} {
		t.Run(test.name, func(t *testing.T) {
			untilOneSucceeds(t, func() (problems []string) {
				waitForPorts(t)
				name := harness.Container(t, harness.Image(), "--cpus=0.5", "--memory=32m", "--memory-swap=32m")
				address := harness.ContainerIP(t, name) + ":5002"
				harness.WaitForHealth(t, address)
				peak := watch(memoryOf(t, name))
				wait := harness.Flood(t, address, clients, test.attack)
				slowest := harness.Probe(t, address, 6*time.Second)
				used := peak()
				wait()
				t.Logf("the slowest probe took %.2f s; the peak of memory, with the kernel's for TCP, was %.1f MiB", slowest.Seconds(), float64(used)/(1<<20))
				if slowest > test.slowest {
					problems = append(problems, fmt.Sprintf("the slowest probe took %v, want at most %v", slowest, test.slowest))
				}
				if used > memory {
					t.Errorf("%d bytes of memory were used, want at most %d", used, memory)
				}
				if got := harness.Must(t, "inspect", "-f", "{{.State.Running}} {{.State.OOMKilled}} {{.RestartCount}}", name); got != "true false 0" {
					t.Errorf("running, killed for its memory, restarts: %s, want true false 0", got)
				}
				harness.Must(t, "rm", "-f", name)
				return problems
			})
		})
	}
}

// untilOneSucceeds runs try up to five times until it returns no problems, because on a machine that is
// shared, one run may find it busy. What must hold on every machine, try reports itself.
func untilOneSucceeds(t *testing.T, try func() (problems []string)) {
	t.Helper()
	const tries = 5
	for i := 1; ; i++ {
		problems := try()
		if len(problems) == 0 || t.Failed() {
			return
		}
		text := strings.Join(problems, "; ")
		if i == tries {
			t.Fatalf("try %d of %d: %s", i, tries, text)
		}
		t.Logf("try %d of %d: %s", i, tries, text)
	}
}

// memoryOf returns what reads the memory in bytes that the container uses, with the kernel's for TCP.
// Version 2 of control groups includes that memory; version 1 has to be asked for it, which needs root.
func memoryOf(t *testing.T, container string) (usage func() (int64, error)) {
	t.Helper()
	pid := harness.Must(t, "inspect", "-f", "{{.State.Pid}}", container)
	groups, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	if match := regexp.MustCompile(`(?m)^\d+:memory:(.+)$`).FindSubmatch(groups); match != nil {
		group := filepath.Join("/sys/fs/cgroup/memory", string(match[1]))
		if err := os.WriteFile(group+"/memory.kmem.tcp.limit_in_bytes", []byte(strconv.Itoa(1<<40)), 0o644); err != nil {
			t.Fatalf("cannot count the kernel's memory for TCP: %v", err)
		}
		files = []string{group + "/memory.usage_in_bytes", group + "/memory.kmem.tcp.usage_in_bytes"}
	} else if match := regexp.MustCompile(`(?m)^0::(.+)$`).FindSubmatch(groups); match != nil {
		files = []string{filepath.Join("/sys/fs/cgroup", string(match[1]), "memory.current")}
	}

	usage = func() (sum int64, err error) {
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return 0, err
			}
			n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			if err != nil {
				return 0, err
			}
			sum += n
		}
		return sum, nil
	}
	if n, err := usage(); err != nil || n == 0 {
		t.Fatalf("reading the container's memory from %v: %d, %v", files, n, err)
	}
	return usage
}

// watch calls usage every 5 ms until the returned function is called, which returns the peak in bytes.
func watch(usage func() (int64, error)) (peak func() int64) {
	var highest atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(5 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if n, _ := usage(); n > highest.Load() { // 0 if the container is gone, which the test notices
					highest.Store(n)
				}
			case <-stop:
				return
			}
		}
	}()
	return func() int64 {
		close(stop)
		<-stopped
		return highest.Load()
	}
}

// Clients that behave are served as if there were no bound while they fit, and take turns when they
// do not.
func TestHonestClients(t *testing.T) {
	for _, program := range []string{"wrk", "hey"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%s is needed: apt-get install %s", program, program)
		}
	}
	floor := buildFloor(t)
	for _, test := range []struct {
		name    string
		memory  []string
		clients int
		fit     bool // all clients fit: no request may fail, and throughput is compared with bare net/http
	}{
		{"1000 clients in 128 MiB", []string{"--memory=128m", "--memory-swap=128m"}, 1000, true},
		{"5000 clients without a limit", nil, 5000, true},
		{"1000 clients in 64 MiB", []string{"--memory=64m", "--memory-swap=64m"}, 1000, false},
		{"1000 clients in 32 MiB", []string{"--memory=32m", "--memory-swap=32m"}, 1000, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			start := func(arguments ...string) (name, url string) {
				arguments = append(append([]string{"--cpus=1"}, test.memory...), arguments...)
				name = harness.Container(t, harness.Image(), arguments...)
				address := harness.ContainerIP(t, name) + ":5002"
				harness.WaitForHealth(t, address)
				return name, "http://" + address + "/health"
			}
			name, service := start()
			// hey keeps at most 500 connections and opens the others anew for each request, so for a moment
			// it has more than fit.
			load := func(program string, allowNone bool, generate func(*testing.T, string, int) (int, int, float64)) {
				untilOneSucceeds(t, func() []string {
					waitForPorts(t)
					requests, failed, rate := generate(t, service, test.clients)
					t.Logf("%s: %d requests, %d failed, %.0f a second", program, requests, failed, rate)
					if allowed := requests / 500; requests == 0 || failed > allowed || allowNone && failed > 0 {
						return []string{fmt.Sprintf("%s: %d of %d requests failed", program, failed, requests)}
					}
					return nil
				})
			}
			load("wrk", test.fit, wrk)
			load("hey", false, hey)
			if got := harness.Must(t, "inspect", "-f", "{{.State.Running}} {{.State.OOMKilled}}", name); got != "true false" {
				t.Errorf("running, killed for its memory: %s, want true false", got)
			}
			if !test.fit {
				return
			}
			_, service = start() // at another address, because hey has used up the ports to connect from to this one
			_, address := startFloor(t, floor, append([]string{"--cpus=1", "-e", "GOMAXPROCS=1"}, test.memory...)...)
			var ratios []float64
			for i := 0; i < 5; i++ {
				_, _, ours := wrk(t, service, test.clients)
				_, failed, theirs := wrk(t, "http://"+address+"/health", test.clients)
				if failed > 0 {
					t.Logf("bare net/http: %d requests failed", failed)
				}
				ratios = append(ratios, ours/theirs)
			}
			sort.Float64s(ratios)
			t.Logf("throughput against bare net/http: %.2f, the median of %.2f (target: at least 0.85, informational)", ratios[len(ratios)/2], ratios)
		})
	}
}

// buildFloor builds bare net/http with the Go of the service, which changes the rate.
func buildFloor(t *testing.T) (path string) {
	t.Helper()
	version := strings.Fields(harness.Must(t, "run", "--rm", harness.Image(), "-version"))
	path = filepath.Join(t.TempDir(), "floor")
	build := exec.Command("go", "build", "-trimpath", "-tags", "nethttpomithttp2", "-o", path, "./test/floor")
	build.Dir, build.Env = harness.Root(t), append(os.Environ(), "CGO_ENABLED=0", "GOTOOLCHAIN="+version[len(version)-2])
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build ./test/floor: %v\n%s", err, output)
	}
	return path
}

// startFloor starts bare net/http in a container like the service's, until the test ends.
func startFloor(t *testing.T, floor string, arguments ...string) (name, address string) {
	t.Helper()
	health := `HEALTH={"status":"healthy","timestamp":"2026-01-02T03:04:05.678Z","uptime_seconds":12}` + "\n"
	arguments = append([]string{"-v", floor + ":/floor:ro", "--entrypoint", "/floor", "-e", "PORT=5002", "-e", health}, arguments...)
	name = harness.Container(t, harness.Image(), arguments...)
	address = harness.ContainerIP(t, name) + ":5002"
	harness.WaitForHealth(t, address)
	return name, address
}

// waitForPorts waits until this machine has most of its ports again. A closed connection keeps its port
// for a minute (TIME_WAIT), and with thousands of them the client's kernel takes milliseconds to find a
// free one for each new connection, in which the clients behave like a flood of silent ones.
func waitForPorts(t *testing.T) {
	t.Helper()
	const inTimeWait = `(?m)^TCP: .*\btw (\d+)`
	for deadline := time.Now().Add(75 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		text, err := os.ReadFile("/proc/net/sockstat")
		if err != nil {
			t.Fatal(err)
		}
		n := number(t, text, inTimeWait)
		if n < 1000 {
			return
		}
		if time.Now().After(deadline) {
			t.Logf("goes on with %d ports in TIME_WAIT, because another program on this machine uses them up", n)
			return
		}
	}
}

// wrk loads url for two seconds with that many keep-alive clients.
func wrk(t *testing.T, url string, clients int) (requests, failed int, rate float64) {
	t.Helper()
	output, err := exec.Command("wrk", "-t1", fmt.Sprintf("-c%d", clients), "-d2s", "--timeout", "10s", url).CombinedOutput()
	if err != nil {
		t.Fatalf("wrk: %v\n%s", err, output)
	}
	requests = number(t, output, `(\d+) requests in`)
	if bytes.Contains(output, []byte("Socket errors")) {
		for _, kind := range []string{"connect", "read", "write", "timeout"} {
			failed += number(t, output, kind+` (\d+)`)
		}
	}
	if bytes.Contains(output, []byte("Non-2xx")) {
		failed += number(t, output, `Non-2xx or 3xx responses: (\d+)`)
	}
	rate, err = strconv.ParseFloat(string(regexp.MustCompile(`Requests/sec:\s+([\d.]+)`).FindSubmatch(output)[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return requests, failed, rate
}

// hey is like wrk, by another program.
func hey(t *testing.T, url string, clients int) (requests, failed int, rate float64) {
	t.Helper()
	output, err := exec.Command("hey", "-c", strconv.Itoa(clients), "-z", "2s", "-t", "10", url).CombinedOutput()
	if err != nil {
		t.Fatalf("hey: %v\n%s", err, output)
	}
	ok := number(t, output, `\[200\]\s+(\d+) responses`)
	for _, match := range regexp.MustCompile(`(?m)^\s+\[(\d+)\]\s+(?:(\d+) responses|.*)$`).FindAllSubmatch(output, -1) {
		switch {
		case string(match[1]) == "200":
		case len(match[2]) > 0:
			failed += number(t, match[2], `(\d+)`)
		default: // a line of the error distribution: [count] error
			failed += number(t, match[1], `(\d+)`)
		}
	}
	rate, err = strconv.ParseFloat(string(regexp.MustCompile(`Requests/sec:\s+([\d.]+)`).FindSubmatch(output)[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return ok + failed, failed, rate
}

func number(t *testing.T, output []byte, pattern string) int {
	t.Helper()
	match := regexp.MustCompile(pattern).FindSubmatch(output)
	if match == nil {
		t.Fatalf("no %s in\n%s", pattern, output)
	}
	n, err := strconv.Atoi(string(match[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
