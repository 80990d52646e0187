//go:build flood

// Package flood tests the service in a container, under clients that do not behave and under more honest
// ones than fit. It needs Docker, root to count the kernel's memory, wrk and hey.
package flood

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

func TestMain(m *testing.M) {
	if setting := os.Getenv(clientsVariable); setting != "" {
		os.Exit(runClients(setting))
	}
	harness.Main(m)
}

// In a container of 32 MiB and half a processor, 5,000 clients at once that do not behave neither hide
// /health nor take more memory than there is, with the kernel's memory for their connections counted.
func TestAttacksIn32MiB(t *testing.T) {
	const memory, attackers, maxHeader = 32 << 20, 5000, 16 << 10
	const quick, slow = 2 * time.Second, 5 * time.Second // slow where clients do not read

	// As large, and as expensive to encode, as a header field may be.
	expensive := "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + strings.Repeat("\"\x80", 7500) + "\r\n\r\n"
	half := shortFields(4<<10, false)
	request := "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + strings.Repeat("x", 700) + "\r\n\r\n"
	for _, test := range []struct {
		name    string
		attack  attack
		slowest time.Duration
	}{
		{"idle", idle, quick},
		{"a header byte a second", trickle, quick},
		{"requests without end, responses never read", neverRead, slow},
		{"half a header of 16 KiB in short fields", sendHalf(shortFields(maxHeader, false)), quick},
		{"a header of 16 KiB in short fields", sendWithoutReading(shortFields(maxHeader-100, true)), slow},
		{"a header of 512 bytes in short fields", sendWithoutReading(shortFields(512, true)), slow},
		{"one field of 15 KB, expensive to encode", sendWithoutReading([]byte(expensive)), slow},
		{"half a header behind a whole one", sendHalf(append([]byte(harness.LargeRequest(600)), half...)), quick},
		{"a header that is too large", sendHalf([]byte(harness.LargeRequest(maxHeader + 1<<10))), quick},
		{"a large body that never comes", sendHalf([]byte(uploadHeader)), quick},
		{"twenty requests at once, responses never read", sendWithoutReading(bytes.Repeat([]byte(request), 20)), slow},
	} {
		t.Run(test.name, func(t *testing.T) {
			untilOneSucceeds(t, func() (problem string) {
				waitForPorts(t)
				name, address := start(t, "--cpus=0.5", "--memory=32m", "--memory-swap=32m")
				peak := watch(memoryOf(t, name))
				wait := flood(address, attackers, time.Now().Add(time.Minute), test.attack, false)
				probes := clients{Address: address, N: 1, Pause: 20 * time.Millisecond}.start(t)
				time.Sleep(6 * time.Second)
				seen, used := probes(), peak()
				t.Logf("%v; the peak of memory, with the kernel's for TCP, was %.1f MiB", seen, mib(used))
				if used >= memory {
					t.Errorf("%d bytes of memory were used, want less than %d", used, memory)
				}
				checkState(t, name)
				harness.Must(t, "rm", "-f", name)
				wait()
				if seen.Failed > 0 || seen.Slowest > test.slowest {
					return fmt.Sprintf("the slowest probe took %v and %d failed, want all within %v", seen.Slowest, seen.Failed, test.slowest)
				}
				return ""
			})
		})
	}
}

// start runs the image until the test ends, waits until it answers, and returns the container's name and
// its own address, which does not pass through the engine's proxy.
func start(t *testing.T, arguments ...string) (name, address string) {
	t.Helper()
	name = harness.Container(t, harness.Image(), arguments...)
	address = harness.Must(t, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name) + ":5002"
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

// waitForPorts waits until this machine has most of its ports again. A closed connection keeps its port
// for a minute (TIME_WAIT), and with thousands of them the client's kernel takes milliseconds to find a
// free one for each new connection, in which the clients behave like a flood of silent ones.
func waitForPorts(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(75 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		text, err := os.ReadFile("/proc/net/sockstat")
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(string(regexp.MustCompile(`(?m)^TCP: .*\btw (\d+)`).FindSubmatch(text)[1]))
		if err != nil {
			t.Fatal(err)
		}
		if n < 1000 {
			return
		}
		if time.Now().After(deadline) {
			t.Logf("goes on with %d ports in TIME_WAIT, because another program on this machine uses them up", n)
			return
		}
	}
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

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

// attack is what one attacker does with its connection until the service closes it.
type attack func(*net.TCPConn)

// flood opens n connections at once and gives each to an attacker of its own. Those that the service leaves
// open fail when the flood is over. If they return, each connects again a second after it has left, until
// then. The returned function waits until all have ended.
func flood(address string, n int, over time.Time, attack attack, returns bool) (wait func()) {
	var attackers sync.WaitGroup
	for i := 0; i < n; i++ {
		attackers.Add(1)
		go func() {
			defer attackers.Done()
			for first := true; first || returns && time.Now().Before(over); first = false {
				// An error does not matter. What counts is that other clients are served.
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
	return attackers.Wait
}

// idle sends nothing.
func idle(conn *net.TCPConn) { conn.Read(make([]byte, 1)) }

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
func neverRead(conn *net.TCPConn) {
	conn.SetReadBuffer(1)
	requests := bytes.Repeat([]byte(harness.SmallRequest), 1000)
	for err := error(nil); err == nil; {
		_, err = conn.Write(requests)
	}
}

// sendHalf sends half a request and then waits.
func sendHalf(half []byte) attack {
	return func(conn *net.TCPConn) {
		conn.Write(half)
		conn.Read(make([]byte, 1))
	}
}

// sendWithoutReading sends whole requests once and reads nothing for five seconds.
func sendWithoutReading(requests []byte) attack {
	return func(conn *net.TCPConn) {
		conn.SetReadBuffer(1)
		conn.Write(requests)
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

// reset sends a request and resets the connection.
func reset(conn *net.TCPConn) {
	conn.Write([]byte(harness.SmallRequest))
	conn.SetLinger(0) // the connection is closed next
}

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
