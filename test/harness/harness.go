// Package harness is what all tests share: it starts the service as a process or in a container,
// talks HTTP to it over raw sockets, reads its log, floods it and measures it. It does not know what
// the right response is; that is for the tests to say.
package harness

import (
	"archive/zip"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// Main is for TestMain of every package that starts Clients or starts the service as a process. It exits.
func Main(m *testing.M) {
	code := m.Run()
	if built.folder != "" {
		os.RemoveAll(built.folder)
	}
	os.Exit(code)
}

// WaitFor polls until ready returns true, for ten seconds at most.
func WaitFor(t testing.TB, what string, ready func() bool) {
	t.Helper()
	WaitUpTo(t, 10*time.Second, what, ready)
}

// WaitUpTo polls until ready returns true, for that long at most.
func WaitUpTo(t testing.TB, limit time.Duration, what string, ready func() bool) {
	t.Helper()
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
	if !found {
		return false
	}
	for _, setting := range info.Settings {
		if setting.Key == "-race" {
			return setting.Value == "true"
		}
	}
	return false
}

// Root is the top folder of the module.
func Root(t testing.TB) string {
	t.Helper()
	path, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatalf("go env GOMOD: %v", err)
	}
	return filepath.Dir(strings.TrimSpace(string(path)))
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
