// Package harness is what all tests share: it starts the service as a process or in a container,
// talks HTTP to it over raw sockets, reads its log and measures it. It does not know what
// the right response is; that is for the tests to say.
package harness

import (
	"archive/zip"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// interruption is what has to happen when the tests are interrupted, because no t.Cleanup runs then.
var interruption struct {
	sync.Mutex
	functions []func()
}

// AtEnd calls f when the test ends, or when the tests are interrupted. The package's TestMain must call Main.
func AtEnd(t testing.TB, f func()) {
	once := sync.OnceFunc(f)
	interruption.Lock()
	interruption.functions = append(interruption.functions, once)
	interruption.Unlock()
	t.Cleanup(once)
}

// Main is for TestMain of every package that starts processes or containers. It gives the tests a temporary
// folder of their own, and leaves nothing behind when they are interrupted. It exits.
func Main(m *testing.M) {
	sendCtrlC()
	folder, err := os.MkdirTemp("", "devops-info-service-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Setenv("TMPDIR", folder) // which os.TempDir reads on Unix
	os.Setenv("TMP", folder)    // and on Windows
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupted
		interruption.Lock() // for good: nothing more is started
		for _, f := range interruption.functions {
			f()
		}
		os.RemoveAll(folder)
		os.Exit(1)
	}()
	code := m.Run()
	os.RemoveAll(folder)
	os.Exit(code)
}

// WaitFor polls until ready returns true, for ten seconds at most.
func WaitFor(t testing.TB, what string, ready func() bool) {
	t.Helper()
	const limit = 10 * time.Second
	for deadline := time.Now().Add(limit); !ready(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", limit, what)
		}
	}
}

// FreePort returns a port of 127.0.0.1 on which nobody listens.
func FreePort(t testing.TB) string {
	t.Helper()
	listener := Listen(t)
	listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return port
}

// Listen returns a listener on a free port of 127.0.0.1. It closes when the test ends.
func Listen(t testing.TB) *net.TCPListener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener.(*net.TCPListener)
}

// RaceEnabled reports whether the test was built with the race detector, which makes it about ten
// times slower.
func RaceEnabled() bool {
	info, found := debug.ReadBuildInfo()
	return found && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// Root is the top folder of the module.
func Root(testing.TB) string {
	_, thisFile, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(thisFile), "..", "..")
}

// ZoneArchive is the tz database that comes with Go.
func ZoneArchive(t testing.TB) *zip.ReadCloser {
	t.Helper()
	archive, err := zip.OpenReader(filepath.Join(runtime.GOROOT(), "lib", "time", "zoneinfo.zip"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { archive.Close() })
	return archive
}
