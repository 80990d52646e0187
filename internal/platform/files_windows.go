package platform

import (
	"os/exec"
	"strings"
)

// openFiles is nil, because Windows has no limit on open files.
func openFiles() *int64 { return nil }

// systemVersion is such as "Microsoft Windows [Version 10.0.22631.4460]", or empty if the shell does not say.
// It asks the shell because what the standard library's syscall.GetVersion returns ends at Windows 8.
func systemVersion() string {
	output, _ := exec.Command("cmd", "/c", "ver").Output()
	return strings.TrimSpace(string(output))
}
