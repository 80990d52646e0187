package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"sync"
	"testing"
	"time"

	"devops-info-service/internal/healthcheck"
)

// clientsVariable holds a Clients. With it, Main is the process that Start starts.
const clientsVariable = "TEST_CLIENTS"

// Clients request /health from a process of their own, which does not share processor time with the
// attackers in the test's.
type Clients struct {
	Address string
	N       int           // that many at once
	Pause   time.Duration // of each between two requests

	// Kept is for clients as programs have them: an http.Client that keeps its connection, and that repeats a
	// request itself only if the kept connection was closed before a byte of the response came (RFC 9110,
	// section 9.2.2, allows that for GET). Otherwise each request is one of -healthcheck's, on a new
	// connection; it is repeated for ten seconds, as every health checker does, while the clock goes on.
	Kept bool
}

// Report is what the clients have seen.
type Report struct {
	Requests, Failed, Repeated int
	Slowest                    time.Duration // of those that succeeded
	SlowestBegan               time.Time
	Errors                     map[string]int // of the failed ones, without addresses
}

// Start starts the clients. The returned function stops them and returns what they have seen. The package's
// TestMain must call Main.
func (c Clients) Start(t testing.TB) (stop func() Report) {
	t.Helper()
	setting, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), clientsVariable+"="+string(setting)), os.Stderr
	running, err := cmd.StdinPipe() // ends with this process too
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return func() (report Report) {
		t.Helper()
		running.Close()
		if err := json.NewDecoder(output).Decode(&report); err != nil {
			t.Fatalf("the clients' report: %v", err)
		}
		return report
	}
}

// Probe requests /health on new connections for that long and returns how long the slowest success took.
func Probe(t testing.TB, address string, during time.Duration) (slowest time.Duration) {
	t.Helper()
	stop := Clients{Address: address, N: 1, Pause: 20 * time.Millisecond}.Start(t)
	time.Sleep(during)
	report := stop()
	t.Logf("%d probes, the slowest took %v (%d tries were repeated)", report.Requests, report.Slowest, report.Repeated)
	if report.Failed > 0 || report.Requests == 0 {
		t.Fatalf("%d of %d probes failed for ten seconds: %v", report.Failed, report.Requests, report.Errors)
	}
	return report.Slowest
}

var addresses = regexp.MustCompile(`[\d.]+:\d+`)

// runClients is the process that Start starts. It returns its exit code.
func runClients(setting string) int {
	var c Clients
	if err := json.Unmarshal([]byte(setting), &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	report := Report{Errors: map[string]int{}}
	var mu sync.Mutex
	var clients sync.WaitGroup
	for i := 0; i < c.N; i++ {
		clients.Add(1)
		go func() {
			defer clients.Done()
			client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
			for first := true; first || ctx.Err() == nil; first = false {
				began, repeated := time.Now(), 0
				err := c.request(client)
				for ; err != nil && !c.Kept && time.Since(began) < 10*time.Second; repeated++ {
					err = c.request(client)
				}
				took := time.Since(began)
				mu.Lock()
				report.Requests++
				report.Repeated += repeated
				if err != nil {
					report.Failed++
					report.Errors[addresses.ReplaceAllString(err.Error(), "…")]++
				} else if took > report.Slowest {
					report.Slowest, report.SlowestBegan = took, began
				}
				mu.Unlock()
				if c.Pause > 0 {
					select {
					case <-ctx.Done():
					case <-time.After(c.Pause):
					}
				}
			}
		}()
	}
	clients.Wait()
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		return 1
	}
	return 0
}

// request requests /health once.
func (c Clients) request(client *http.Client) error {
	if !c.Kept {
		return healthcheck.Check(context.Background(), "tcp", c.Address)
	}
	response, err := client.Get("http://" + c.Address + "/health")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	_, err = io.Copy(io.Discard, response.Body)
	return err
}
