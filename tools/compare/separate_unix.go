//go:build unix

package main

import (
	"os/exec"
	"syscall"
)

// separate gives a command a process group of its own. Ctrl-C in the terminal then reaches this
// program only, which decides what is stopped and what is completed.
func separate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
}
