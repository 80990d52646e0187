package harness

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// Windows has no signals. Ctrl-C reaches all processes of a console, so the service gets one of its own, and a
// process that is attached to it sends Ctrl-C.

// consoleVariable holds the process whose console gets a Ctrl-C. With it, Main is the process that sends it.
const consoleVariable = "TEST_CTRL_C"

func signalProcess(p *os.Process, _ os.Signal) error {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), consoleVariable+"="+strconv.Itoa(p.Pid))
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, output)
	}
	return nil
}

func ownConsole() *syscall.SysProcAttr {
	const createNewConsole = 0x10 // Microsoft's "Process Creation Flags"
	return &syscall.SysProcAttr{CreationFlags: createNewConsole, HideWindow: true}
}

// sendCtrlC sends Ctrl-C and exits, if this is the process that does so.
func sendCtrlC() {
	pid, err := strconv.Atoi(os.Getenv(consoleVariable))
	if err != nil {
		return
	}
	kernel := syscall.NewLazyDLL("kernel32.dll")
	kernel.NewProc("FreeConsole").Call() // a process has one console at most
	kernel.NewProc("AttachConsole").Call(uintptr(pid))
	kernel.NewProc("SetConsoleCtrlHandler").Call(0, 1) // ignore Ctrl-C in this process
	if sent, _, err := kernel.NewProc("GenerateConsoleCtrlEvent").Call(syscall.CTRL_C_EVENT, 0); sent == 0 {
		fmt.Print(err)
		os.Exit(1)
	}
	os.Exit(0)
}
