//go:build bench

package bench

import (
	"bytes"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

var docs = flag.String("docs", "", "also write performance.md's figures and performance.svg into this folder")

const (
	rounds      = 7
	levelRounds = 5 // for each level of connections
	turn        = "2s"
	connections = 32
	starts      = 100
)

// levels are the numbers of connections of the load series.
var levels = []int{1, 32, 256, 1000, 5000}

// TestBench measures the service against bare net/http (test/floor) and prints ratios of medians
// beside their targets. A missed target does not fail the test, because the machine may have had a
// bad day.
func TestBench(t *testing.T) {
	if _, err := exec.LookPath("wrk"); err != nil {
		t.Fatal("wrk is needed: apt-get install wrk, or brew install wrk")
	}
	service := &server{name: "service", binary: harness.Binary(t)}
	floor := &server{name: "floor", binary: buildFloor(t)}

	service.start(t)
	defer service.stop()
	idle := harness.Memory(t, service.cmd.Process.Pid, "RssAnon")
	_, root := harness.Get(t, service.address, "/")
	_, health := harness.Get(t, service.address, "/health")
	floor.environment = []string{"ROOT=" + root, "HEALTH=" + health}
	floor.start(t)
	defer floor.stop()
	floorIdle := harness.Memory(t, floor.cmd.Process.Pid, "RssAnon")

	var report bytes.Buffer
	versionLine, err := exec.Command(service.binary, "-version").Output()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&report, "Measured %s: %s, %d × %s. With %d connections, medians of %d turns:\n\n", time.Now().UTC().Format("2006-01-02"),
		bytes.TrimSpace(versionLine), runtime.NumCPU(), processor(), connections, rounds)
	fmt.Fprintf(&report, "| | service | floor | ratio | target |\n| --- | ---: | ---: | ---: | --- |\n")
	for _, test := range []struct {
		path   string
		target float64
		note   string
	}{{"/health", 0.95, ""}, {"/", 0.85, " with its log line"}} {
		ours, theirs := compare(t, service, floor, test.path, connections, rounds)
		ratio := ours.rate / theirs.rate
		verdict := "met"
		if ratio < test.target {
			verdict = "missed"
		}
		fmt.Fprintf(&report, "| `%s`%s, requests a second | %.0f | %.0f | %.2f | ≥ %.2f: %s |\n", test.path, test.note, ours.rate, theirs.rate, ratio, test.target, verdict)
		fmt.Fprintf(&report, "| `%s`, processor time a request, µs | %.2f | %.2f | %.2f | |\n", test.path, ours.cpu, theirs.cpu, ours.cpu/theirs.cpu)
	}
	service.stop()
	floor.stop()
	var ourStarts, floorStarts []float64
	for i := 0; i < starts; i++ {
		ourStarts = append(ourStarts, service.start(t).Seconds()*1000)
		service.stop()
		floorStarts = append(floorStarts, floor.start(t).Seconds()*1000)
		floor.stop()
	}
	fmt.Fprintf(&report, "| start to the first 200, ms | %.2f | %.2f | %.2f | ≤ 1.50 |\n", median(ourStarts), median(floorStarts), median(ourStarts)/median(floorStarts))
	fmt.Fprintf(&report, "| idle memory (RssAnon), MB | %.2f | %.2f | %.2f | ≤ 1.5 MB |\n", float64(idle)/1e6, float64(floorIdle)/1e6, float64(idle)/float64(floorIdle))
	fmt.Fprintf(&report, "| binary, MB | %.2f | %.2f | %.2f | ≤ 5.0 MB |\n", size(t, service.binary), size(t, floor.binary), size(t, service.binary)/size(t, floor.binary))

	fmt.Fprintf(&report, "\n`/health` over the number of connections, medians of %d turns; failed requests are the sum of all turns:\n\n", levelRounds)
	fmt.Fprintf(&report, "| connections | service, requests a second | failed | floor, requests a second | failed | ratio |\n| ---: | ---: | ---: | ---: | ---: | ---: |\n")
	service.start(t)
	floor.start(t)
	var series [2][]float64
	for _, level := range levels {
		ours, theirs := compare(t, service, floor, "/health", level, levelRounds)
		fmt.Fprintf(&report, "| %d | %.0f | %d | %.0f | %d | %.2f |\n", level, ours.rate, ours.failed, theirs.rate, theirs.failed, ours.rate/theirs.rate)
		series[0], series[1] = append(series[0], ours.rate), append(series[1], theirs.rate)
	}
	fmt.Print("\n", report.String(), "\n")
	if *docs != "" {
		writeDocs(t, *docs, report.String(), series)
	}
}

// server is one of the two programs.
type server struct {
	name, binary string
	environment  []string
	address      string
	cmd          *exec.Cmd
}

// start runs the program on the first processor and returns how long it took to answer /health.
func (s *server) start(t *testing.T) time.Duration {
	t.Helper()
	port := harness.FreePort(t)
	s.address = net.JoinHostPort("127.0.0.1", port)
	s.cmd = pinned(0, s.binary)
	s.cmd.Env = append([]string{"PORT=" + port}, s.environment...) // without Stdout, the log goes to os.DevNull
	began := time.Now()
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for !answers(s.address) {
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%s does not answer", s.binary)
		}
		time.Sleep(50 * time.Microsecond)
	}
	return time.Since(began)
}

func (s *server) stop() {
	if s.cmd.ProcessState == nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
	}
}

func answers(address string) bool {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	fmt.Fprint(conn, "GET /health HTTP/1.0\r\n\r\n")
	status := make([]byte, len("HTTP/1.0 200"))
	conn.Read(status)
	return string(status) == "HTTP/1.0 200"
}

// pinned is a command on one processor, where the machine has several, so that the client does not
// take the server's time.
func pinned(processor int, name string, args ...string) *exec.Cmd {
	if taskset, err := exec.LookPath("taskset"); err == nil && runtime.NumCPU() > 1 {
		return exec.Command(taskset, append([]string{"-c", strconv.Itoa(processor), name}, args...)...)
	}
	return exec.Command(name, args...)
}

// result is the median of several turns.
type result struct {
	rate   float64 // requests a second
	cpu    float64 // the server's processor time for a request, in µs
	failed int     // in all turns
}

// compare loads both servers in turns; each goes first as often as the other.
func compare(t *testing.T, a, b *server, path string, connections, rounds int) (ofA, ofB result) {
	t.Helper()
	servers := [2]*server{a, b}
	var rates, cpus [2][]float64
	var failed [2]int
	for round := 0; round < rounds; round++ {
		for i := range servers {
			which := (i + round) % 2
			rate, cpu, n := servers[which].load(t, path, connections)
			rates[which], cpus[which] = append(rates[which], rate), append(cpus[which], cpu)
			failed[which] += n
		}
	}
	return result{median(rates[0]), median(cpus[0]), failed[0]}, result{median(rates[1]), median(cpus[1]), failed[1]}
}

// load requests path from all connections for one turn with wrk.
func (s *server) load(t *testing.T, path string, connections int) (rate, cpu float64, failed int) {
	t.Helper()
	before := s.cpuTime(t)
	output, err := pinned(1, "wrk", "-t1", fmt.Sprintf("-c%d", connections), "-d"+turn, "--timeout", "10s", "http://"+s.address+path).CombinedOutput()
	if err != nil {
		t.Fatalf("wrk: %v\n%s", err, output)
	}
	used := s.cpuTime(t) - before
	find := func(pattern string) float64 {
		match := regexp.MustCompile(pattern).FindSubmatch(output)
		if match == nil {
			return 0
		}
		n, err := strconv.ParseFloat(string(match[1]), 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	requests := find(`(\d+) requests in`)
	if requests == 0 {
		t.Fatalf("%s: no requests in\n%s", s.name, output)
	}
	for _, pattern := range []string{`connect (\d+)`, `read (\d+)`, `write (\d+)`, `timeout (\d+)`, `Non-2xx or 3xx responses: (\d+)`} {
		failed += int(find(pattern))
	}
	return find(`Requests/sec:\s+([\d.]+)`), used / requests * 1e6, failed
}

// cpuTime is the processor time of the program in seconds: fields 14 and 15 of /proc/PID/stat, which
// count hundredths (proc_pid_stat(5)).
func (s *server) cpuTime(t *testing.T) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var user, system float64
	if _, err := fmt.Sscan(strings.Join(strings.Fields(string(text))[13:15], " "), &user, &system); err != nil {
		t.Fatal(err)
	}
	return (user + system) / 100
}

func buildFloor(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "floor")
	build := exec.Command("go", "build", "-trimpath", "-tags", "nethttpomithttp2", "-ldflags=-s -w", "-o", path, "./test/floor")
	build.Dir, build.Env = harness.Root(t), append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build ./test/floor: %v\n%s", err, output)
	}
	return path
}

func size(t *testing.T, path string) float64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return float64(info.Size()) / 1e6
}

func median(values []float64) float64 {
	sort.Float64s(values)
	return values[len(values)/2]
}

// processor is the machine's, where it says.
func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	_, after, _ := strings.Cut(string(text), "model name\t: ")
	name, _, _ := strings.Cut(after, "\n")
	return name
}
