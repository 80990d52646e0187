//go:build unix

package platform

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// The shell says what the limit is, because the test must not ask the same function.
func TestOpenFilesLimit(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before) })
	lower := before
	lower.Cur = 200
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lower); err != nil {
		t.Fatal(err)
	}
	shell, err := exec.Command("sh", "-c", "ulimit -n").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := show(openFiles()); got != "200" || got != strings.TrimSpace(string(shell)) {
		t.Errorf("got %s, want 200; the shell says %s", got, shell)
	}
}

func TestLimitThatMeansNone(t *testing.T) {
	for n, want := range map[int64]string{1: "1", 1 << 40: "1099511627776", 0: "-", -1: "-", 1<<63 - 1: "-"} {
		if got := show(limit(n)); got != want {
			t.Errorf("%s: got %s, want %s", fmt.Sprint(n), got, want)
		}
	}
}
