package harness

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"
)

// built is the service's binary, built at most once for each test binary.
var built struct {
	sync.Once
	path string
}

// Binary returns the path of the service's binary: the one that SERVICE names, or else the one that Build builds.
// The test is skipped if there is neither, as under Wine, where no go command runs.
func Binary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("SERVICE"); path != "" {
		return path
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skipf("there is no go command to build the service with, and SERVICE does not name it: %v", err)
	}
	built.Do(func() { built.path = Build(t, ".") })
	if built.path == "" {
		t.Fatal("the service could not be built")
	}
	return built.path
}

// Build builds a program of this module with the same flags as in the image, and with the race detector if the
// test has it, and returns its path. The variables are added to the environment.
func Build(t testing.TB, folder string, variables ...string) (path string) {
	t.Helper()
	path = filepath.Join(os.TempDir(), Unique()+".exe") // Windows runs no other names
	args, cgo := []string{"build", "-trimpath", "-buildvcs=false", "-tags", "nethttpomithttp2", "-ldflags=-s -w", "-o", path}, "0"
	if RaceEnabled() {
		args, cgo = append(args, "-race"), "1"
	}
	build := exec.Command("go", append(args, folder)...)
	build.Dir, build.Env = Root(t), append(append(os.Environ(), "CGO_ENABLED="+cgo), variables...)
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", folder, err, output)
	}
	return path
}

// Process is the service as a process of its own, with its output.
type Process struct {
	Cmd            *exec.Cmd
	Stdout, Stderr *Buffer
}

// Prepare returns a process that has not started, with only these environment variables.
func Prepare(t testing.TB, environment []string, args ...string) *Process {
	t.Helper()
	p := &Process{exec.Command(Binary(t), args...), &Buffer{}, &Buffer{}}
	p.Cmd.Env = append([]string{}, environment...) // not nil, which would mean the test's own
	p.Cmd.Stdout, p.Cmd.Stderr = p.Stdout, p.Stderr
	p.Cmd.SysProcAttr = ownConsole()
	return p
}

// Start starts the process. It is killed when the test ends.
func (p *Process) Start(t testing.TB) {
	t.Helper()
	AtEnd(t, func() {
		if p.Cmd.Process != nil {
			p.Cmd.Process.Kill()
			p.Cmd.Wait()
		}
	})
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// Wait returns the exit code of a process that is about to end. After 20 seconds it is killed, and
// the code is -1.
func (p *Process) Wait(t testing.TB) int {
	t.Helper()
	kill := time.AfterFunc(20*time.Second, func() { p.Cmd.Process.Kill() })
	defer kill.Stop()
	p.Cmd.Wait()
	return p.Cmd.ProcessState.ExitCode()
}

// Run runs the service to its end and returns its exit code.
func Run(t testing.TB, environment []string, args ...string) (p *Process, code int) {
	t.Helper()
	p = Prepare(t, environment, args...)
	p.Start(t)
	return p, p.Wait(t)
}

// Launch starts the service on a free port and returns it with its address on this machine.
func Launch(t testing.TB, environment ...string) (p *Process, address string) {
	t.Helper()
	p = Prepare(t, append([]string{"PORT=0"}, environment...))
	p.Start(t)
	return p, net.JoinHostPort("127.0.0.1", WaitForPort(t, p.Stdout))
}

// Signal sends a signal to the process. On Windows, whichever it is, it is Ctrl-C.
func (p *Process) Signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := signalProcess(p.Cmd.Process, sig); err != nil {
		t.Fatalf("sending %v: %v", sig, err)
	}
}

// Memory returns one field of a process's /proc/PID/status, which only Linux has, in bytes. RssAnon is
// what the process has to itself.
func Memory(t testing.TB, pid int, field string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	match := regexp.MustCompile(field + `:\s+(\d+) kB`).FindSubmatch(status)
	if match == nil {
		t.Fatalf("process %d has no %s: %v", pid, field, err)
	}
	kb, _ := strconv.Atoi(string(match[1]))
	return kb * 1024
}
