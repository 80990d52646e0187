//go:build bench

package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"sort"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestBench measures the service binary SERVICE against FLOOR, testdata/floor built in the same way,
// over loopback and in turns, and prints the ratios of the medians beside their targets. It does
// not fail where a target is missed: that could be the machine's bad day.
func TestBench(t *testing.T) {
	const (
		rounds      = 60
		roundTime   = 250 * time.Millisecond
		starts      = 200
		connections = 16
	)
	service := &server{binary: os.Getenv("SERVICE")}
	floor := &server{binary: os.Getenv("FLOOR")}

	service.start(t)
	idle := memory(t, service.cmd.Process.Pid, "RssAnon")
	for _, path := range []string{"/", "/health"} {
		_, body := get(t, service.address, "GET", path, "User-Agent: bench\r\n")
		floor.environment = append(floor.environment, map[string]string{"/": "ROOT=", "/health": "HEALTH="}[path]+body)
	}
	floor.start(t)

	report := func(what, format string, ours, floors float64, target string) {
		ratio := ours / floors
		fmt.Printf("%-24s "+format+"  "+format+"  %6.2f  %s\n", what, ours, floors, ratio, target)
	}
	fmt.Printf("%s, %s/%s, %d CPUs, %s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), processor())
	fmt.Printf("%-24s %10s  %10s  %6s  %s\n", "", "service", "floor", "ratio", "target")
	for _, path := range []string{"/", "/health"} {
		var ours, floors []float64
		cpuBefore := [2]float64{service.cpu(t), floor.cpu(t)}
		for i := 0; i < rounds; i++ { // in turns, and each goes first as often as the other
			if i%2 == 0 {
				ours = append(ours, load(t, service.address, path, connections, roundTime))
			}
			floors = append(floors, load(t, floor.address, path, connections, roundTime))
			if i%2 == 1 {
				ours = append(ours, load(t, service.address, path, connections, roundTime))
			}
		}
		perRequest := func(s *server, before float64, rates []float64) float64 {
			sum := 0.0
			for _, rate := range rates {
				sum += rate * roundTime.Seconds()
			}
			return (s.cpu(t) - before) / sum * 1e6
		}
		report(path+" requests/s", "%10.0f", median(ours), median(floors), map[string]string{"/health": ">= 0.95", "/": ">= 0.85, with its log line"}[path])
		report(path+" CPU, us a request", "%10.2f", perRequest(service, cpuBefore[0], ours), perRequest(floor, cpuBefore[1], floors), "")
	}
	service.stop()
	floor.stop()

	var ours, floors []float64
	for i := 0; i < starts; i++ {
		ours = append(ours, service.start(t).Seconds()*1000)
		service.stop()
		floors = append(floors, floor.start(t).Seconds()*1000)
		floor.stop()
	}
	report("start to first 200, ms", "%10.2f", median(ours), median(floors), "<= 1.5")
	floor.start(t)
	report("idle RssAnon, MB", "%10.2f", float64(idle)/1e6, float64(memory(t, floor.cmd.Process.Pid, "RssAnon"))/1e6, "<= 1.5 MB")
	floor.stop()
}

// server is one of the two programs.
type server struct {
	binary      string
	environment []string
	address     string
	cmd         *exec.Cmd
}

// start runs the program on a free port and returns how long it took to answer /health.
func (s *server) start(t *testing.T) time.Duration {
	listener, port := occupied(t)
	listener.Close()
	s.cmd = exec.Command(s.binary)
	s.cmd.Env = append([]string{"PORT=" + port}, s.environment...)
	s.cmd.Stdout = nil // the log is written, to os.DevNull: what reads it elsewhere has its own cost
	s.address = "127.0.0.1:" + port
	began := time.Now()
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for {
		if conn, err := net.Dial("tcp", s.address); err == nil {
			io.WriteString(conn, "GET /health HTTP/1.0\r\n\r\n")
			answer, _ := io.ReadAll(conn)
			conn.Close()
			if bytes.HasPrefix(answer, []byte("HTTP/1.0 200 ")) {
				return time.Since(began)
			}
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%s does not answer", s.binary)
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// cpu is the processor time that the program has used, in seconds, from fields 14 and 15 of
// /proc/PID/stat, which count hundredths (proc_pid_stat(5)).
func (s *server) cpu(t *testing.T) float64 {
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

func (s *server) stop() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

// load asks for path on that many kept connections at once, with net/http's client, and returns the
// answers a second.
func load(t *testing.T, address, path string, connections int, during time.Duration) float64 {
	client := http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections}, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	var answers atomic.Int64
	failures := make(chan error, connections)
	began := time.Now()
	for i := 0; i < connections; i++ {
		go func() {
			failures <- func() error {
				for time.Since(began) < during {
					response, err := client.Get("http://" + address + path)
					if err != nil {
						return err
					}
					_, err = io.Copy(io.Discard, response.Body)
					response.Body.Close()
					if err != nil || response.StatusCode != 200 {
						return fmt.Errorf("status %d, %v", response.StatusCode, err)
					}
					answers.Add(1)
				}
				return nil
			}()
		}()
	}
	for i := 0; i < connections; i++ {
		if err := <-failures; err != nil {
			t.Fatal(err)
		}
	}
	return float64(answers.Load()) / time.Since(began).Seconds()
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
