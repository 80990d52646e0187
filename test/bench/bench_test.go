//go:build bench

// Package bench measures the service against a plain handler and against bare net/http (both in test/floor), under
// a client that saturates them. It needs wrk, and Linux's /proc.
package bench

import (
	"bytes"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

var docs = flag.String("docs", "", "a file to write the figures into, between its marks")

const (
	during      = 40 * time.Second
	connections = 32
	starts      = 100

	beginMark = "<!-- begin make bench-docs -->\n"
	endMark   = "<!-- end make bench-docs -->\n"
)

func TestMain(m *testing.M) { harness.Main(m) }

// TestBench prints figures beside their goals. A missed goal does not fail the test, because the machine may
// have had a bad day.
func TestBench(t *testing.T) {
	service := &server{binary: harness.Binary(t)}
	floor := harness.Build(t, "./test/floor")
	harness.AtEnd(t, service.stop)
	service.start(t)
	_, root := harness.Get(t, service.address, "/")
	_, health := harness.Get(t, service.address, "/health")
	version, _ := exec.Command(service.binary, "-version").Output()
	constants := []string{"ROOT=" + root, "HEALTH=" + health}
	servers := []*server{service, {binary: floor, environment: append(constants, "PLAIN=yes")}, {binary: floor, environment: constants}}

	var report bytes.Buffer
	fmt.Fprintf(&report, "Measured %s: %s, on %d CPUs. With %d connections to each, for %v:\n\n", time.Now().UTC().Format("2006-01-02"),
		bytes.TrimSpace(version), runtime.NumCPU(), connections, during)
	report.WriteString("| | service | plain handler | bare net/http | service : plain | service : bare | goals |\n| --- | ---: | ---: | ---: | ---: | ---: | --- |\n")
	row := func(name string, values [3]float64, goals string) {
		fmt.Fprintf(&report, "| %s | %s | %s | %s | %.2f | %.2f | %s |\n", name, digits(values[0]), digits(values[1]), digits(values[2]),
			values[0]/values[1], values[0]/values[2], goals)
	}

	var idle, size [3]float64
	for i, server := range servers {
		harness.AtEnd(t, server.stop)
		server.start(t)
		idle[i] = float64(harness.Memory(t, server.cmd.Process.Pid, "RssAnon")) / 1e6
		info, err := os.Stat(server.binary)
		if err != nil {
			t.Fatal(err)
		}
		size[i] = float64(info.Size()) / 1e6
	}
	for _, path := range []string{"/health", "/"} {
		fmt.Printf("bench: %s: %v of all three servers at once\n", path, during)
		rates := compare(t, servers, path)
		goals := "≥ plain: " + verdict(rates[0]/rates[1], 1)
		if path == "/health" {
			goals += "; ≥ 0.92 of bare: " + verdict(rates[0]/rates[2], 0.92)
		}
		row("`"+path+"`, requests for a second of processor time", rates, goals)
	}
	fmt.Printf("bench: %d starts of each\n", starts)
	var times [3][]float64
	for i := 0; i < starts; i++ {
		for s, server := range servers {
			times[s] = append(times[s], server.start(t).Seconds()*1000)
		}
	}
	started := [3]float64{median(times[0]), median(times[1]), median(times[2])}
	row("start to the first 200, ms", started, "≤ 1.50 of bare: "+verdict(1.5, started[0]/started[2]))
	row("idle memory (RssAnon), MB", idle, "≤ 1.5 MB: "+verdict(1.5, idle[0]))
	row("binary, MB", size, "≤ 5.0 MB: "+verdict(5, size[0]))

	fmt.Print("\n", report.String(), "\n")
	if *docs == "" {
		return
	}
	page, err := os.ReadFile(*docs)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(page), beginMark)
	_, after, ended := strings.Cut(rest, endMark)
	if !found || !ended {
		t.Fatalf("%s lacks the lines %s%s", *docs, beginMark, endMark)
	}
	if err := os.WriteFile(*docs, []byte(before+beginMark+report.String()+endMark+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// verdict compares two numbers of which the first should be as large as the second, in hundredths.
func verdict(large, small float64) string {
	if large >= small-0.005 {
		return "met"
	}
	return fmt.Sprintf("missed by %.0f %%", 100*(small-large)/small)
}

// digits shows a number with three digits or more.
func digits(value float64) string {
	if value >= 100 {
		return strconv.FormatFloat(value, 'f', 0, 64)
	}
	return strconv.FormatFloat(value, 'f', 2, 64)
}

// server is one of the programs.
type server struct {
	binary      string
	environment []string
	address     string
	cmd         *exec.Cmd
}

// start runs the program, anew if it runs, on the first processor and returns how long it took to answer /health.
func (s *server) start(t *testing.T) time.Duration {
	t.Helper()
	s.stop()
	port := harness.FreePort(t)
	s.address = net.JoinHostPort("127.0.0.1", port)
	command := append(pin(0), s.binary)
	s.cmd = exec.Command(command[0], command[1:]...)
	s.cmd.Env = append([]string{"PORT=" + port}, s.environment...) // without Stdout, the log goes to os.DevNull
	began := time.Now()
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for !harness.Healthy(s.address) {
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%s does not answer", s.binary)
		}
		time.Sleep(50 * time.Microsecond)
	}
	return time.Since(began)
}

func (s *server) stop() {
	if s.cmd != nil && s.cmd.ProcessState == nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
	}
}

// pin is the begin of a command that runs on one processor, where the machine has several, so that the client
// does not take the server's time.
func pin(processor int) []string {
	if _, err := exec.LookPath("taskset"); err == nil && runtime.NumCPU() > 1 {
		return []string{"taskset", "-c", strconv.Itoa(processor)}
	}
	return nil
}

// compare loads all servers at once, so that whatever else the machine does falls on all of them alike. It returns how
// many requests each one answers in a second of its processor time.
func compare(t *testing.T, servers []*server, path string) (rates [3]float64) {
	t.Helper()
	var before [3]float64
	var waits [3]func() (int, int, float64)
	for i, s := range servers {
		before[i] = s.cpuTime(t)
		waits[i] = harness.Wrk(t, "http://"+s.address+path, connections, during, pin(1)...)
	}
	for i, s := range servers {
		requests, failed, _ := waits[i]()
		if failed > 0 {
			t.Errorf("%d of %d requests failed", failed, requests)
		}
		rates[i] = float64(requests) / (s.cpuTime(t) - before[i])
	}
	return rates
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

func median(values []float64) float64 {
	sort.Float64s(values)
	return values[len(values)/2]
}
