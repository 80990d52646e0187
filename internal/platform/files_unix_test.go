//go:build unix

package platform

import (
	"syscall"
	"testing"
	"testing/fstest"
)

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
	if got := show(ReadLimits(fstest.MapFS{}).Files); got != "200" {
		t.Errorf("got %s, want 200", got)
	}
}
