package platform

import (
	"io/fs"
	"runtime"
	"strings"
)

// Version is PRETTY_NAME of /etc/os-release below root, whose values are quoted as in a shell
// (os-release(5)). Where there is none, it is what the system itself says, or else its name.
func Version(root fs.FS) string {
	data, _ := fs.ReadFile(root, "etc/os-release")
	for _, line := range strings.Split(string(data), "\n") {
		value, found := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME=")
		if !found {
			continue
		}
		if n := len(value); n > 1 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		value = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\$`, `$`, "\\`", "`").Replace(value)
		if value != "" {
			return value
		}
	}
	if version := systemVersion(); version != "" {
		return version
	}
	return runtime.GOOS
}
