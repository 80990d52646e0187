package platform

import (
	"io/fs"
	"os/exec"
	"runtime"
	"strings"
)

// Version is what the operating system says of itself, such as "Alpine Linux v3.19" or "macOS 14.5". If it
// says nothing, it is the system's name.
func Version(root fs.FS) string {
	name := ""
	switch runtime.GOOS {
	case "linux":
		name = prettyName(root)
	case "darwin":
		name = strings.TrimSpace("macOS " + output("sw_vers", "-productVersion"))
	case "windows":
		name = output("cmd", "/c", "ver") // because syscall.GetVersion ends at Windows 8
	default:
		name = output("uname", "-sr")
	}
	if name == "" {
		return runtime.GOOS
	}
	return name
}

// output is what a command prints, or empty if it fails.
func output(command string, arguments ...string) string {
	text, _ := exec.Command(command, arguments...).Output()
	return strings.TrimSpace(string(text))
}

// prettyName is PRETTY_NAME of /etc/os-release below root, whose values are quoted as in a shell
// (os-release(5)). It is empty if there is none.
func prettyName(root fs.FS) string {
	data, _ := fs.ReadFile(root, "etc/os-release")
	for _, line := range strings.Split(string(data), "\n") {
		value, found := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME=")
		if !found {
			continue
		}
		if n := len(value); n > 1 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		return strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\$`, `$`, "\\`", "`").Replace(value)
	}
	return ""
}
