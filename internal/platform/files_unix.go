//go:build unix

package platform

import "syscall"

// openFiles is the soft limit on open files, which Go has raised to the hard limit (getrlimit(2)).
func openFiles() *int64 {
	var files syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files) != nil {
		return nil
	}
	return limit(int64(files.Cur)) // an int64 on FreeBSD and a uint64 elsewhere
}
