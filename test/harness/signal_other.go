//go:build !windows

package harness

import (
	"os"
	"syscall"
)

func signalProcess(p *os.Process, sig os.Signal) error { return p.Signal(sig) }

func ownConsole() *syscall.SysProcAttr { return nil }

func sendCtrlC() {}
