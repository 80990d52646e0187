//go:build flood

package flood

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

// clientsVariable holds clients as JSON. With it, the test's program is the process that start starts.
const clientsVariable = "TEST_CLIENTS"

// clients request /health from a process of their own, so that they share no processor time with the
// attackers in the test's.
type clients struct {
	Address string
	N       int           // at once
	Pause   time.Duration // of each between two requests

	// Kept is for clients as programs have them: an http.Client that keeps its connection. It repeats a request
	// only if the connection was used before and is closed before a byte of the response, which RFC 9110,
	// section 9.2.2, allows. Otherwise each request is one of -healthcheck's, on a new connection, and repeated
	// for ten seconds, as every health checker does, while the clock goes on.
	Kept bool
}

// report is what the clients have seen.
type report struct {
	Requests, Failed, Repeated int
	Slowest                    time.Duration // of those that succeeded
	SlowestBegan               time.Time
	Errors                     map[string]int // of those that failed
}

func (r report) String() string {
	return fmt.Sprintf("%d requests, %d failed %v, the slowest took %.2f s, %d tries were repeated", r.Requests, r.Failed, r.Errors, r.Slowest.Seconds(), r.Repeated)
}

// start starts the clients. The returned function stops them.
func (c clients) start(t *testing.T) (stop func() report) {
	t.Helper()
	setting, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), clientsVariable+"="+string(setting)), os.Stderr
	input, err := cmd.StdinPipe() // ends with the test's process, however that ends
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
	return func() (seen report) {
		t.Helper()
		input.Close()
		if err := json.NewDecoder(output).Decode(&seen); err != nil {
			t.Fatalf("the clients' report: %v", err)
		}
		return seen
	}
}

var addresses = regexp.MustCompile(`[\d.]+:\d+`)

// runClients is the process that start starts. It ends with its input, and returns the exit code.
func runClients(setting string) int {
	var c clients
	if err := json.Unmarshal([]byte(setting), &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	seen := report{Errors: map[string]int{}}
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := 0; i < c.N; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
			for ctx.Err() == nil {
				began, repeated := time.Now(), 0
				err := c.request(client)
				for ; err != nil && !c.Kept && time.Since(began) < 10*time.Second; repeated++ {
					err = c.request(client)
				}
				took := time.Since(began)
				mu.Lock()
				seen.Requests++
				seen.Repeated += repeated
				if err != nil {
					seen.Failed++
					seen.Errors[addresses.ReplaceAllString(err.Error(), "…")]++
				} else if took > seen.Slowest {
					seen.Slowest, seen.SlowestBegan = took, began
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
	all.Wait()
	if err := json.NewEncoder(os.Stdout).Encode(seen); err != nil {
		return 1
	}
	return 0
}

// request requests /health once.
func (c clients) request(client *http.Client) error {
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
