//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package platform

import "syscall"

// systemVersion is such as "macOS 14.5" or "OpenBSD 7.5", or empty if the kernel does not say.
func systemVersion() string {
	if version, err := syscall.Sysctl("kern.osproductversion"); err == nil { // only macOS has it
		return "macOS " + version
	}
	name, _ := syscall.Sysctl("kern.ostype")
	release, err := syscall.Sysctl("kern.osrelease")
	if err != nil {
		return ""
	}
	return name + " " + release
}
