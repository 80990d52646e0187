//go:build !(darwin || dragonfly || freebsd || netbsd || openbsd || windows)

package platform

// systemVersion is empty, because os-release is what these systems say.
func systemVersion() string { return "" }
