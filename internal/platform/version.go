package platform

import (
	"io/fs"
	"runtime"
	"strings"
)

// Version is what the operating system says of itself, such as "Alpine Linux v3.19" or "macOS 14.5". If it
// says nothing, it is the system's name.
func Version(root fs.FS) string {
	for _, name := range []string{systemVersion(), prettyName(root)} {
		if name != "" {
			return name
		}
	}
	return runtime.GOOS
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
