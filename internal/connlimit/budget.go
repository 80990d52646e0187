package connlimit

import (
	"net"
	"syscall"
)

// At its worst, a connection costs up to 48 KiB in the process (its header, the response, a stack and
// net/http's buffers) and up to 64 KiB in the kernel (requests that have not been read, and a response
// that the client does not take). Version 2 of control groups charges both to the container. So
// Max × connectionCost + processCost fits into the container's limit, unless minConnections applies.
const (
	connectionCost = 112 << 10 // bytes
	processCost    = 8 << 20   // bytes, with no connection open

	minConnections = 32    // however little memory there is
	maxConnections = 16384 // however much
	reservedFiles  = 16    // file descriptors that are not for connections

	// socketBuffer is the size in bytes of each of a connection's two kernel buffers. Linux doubles it.
	socketBuffer = 8 << 10
)

// Max is the number of connections that fit into memory, in bytes, and into files, a limit on file
// descriptors. A nil pointer means no limit.
func Max(memory, files *int64) int {
	n := int64(maxConnections)
	if memory != nil {
		n = min(n, max(minConnections, (*memory-processCost)/connectionCost))
	}
	if files != nil {
		n = min(n, max(1, *files-reservedFiles))
	}
	return int(n)
}

// setBuffers sets the buffer sizes of listener, because the connections that it accepts inherit them.
// Setting them after Accept would be too late, because clients send before that: 5,000 clients that never
// read then took 25 MB of the kernel's memory.
func setBuffers(listener *net.TCPListener) {
	raw, err := listener.SyscallConn()
	if err != nil {
		return // the listener is closed, which Accept reports
	}
	raw.Control(func(fd uintptr) {
		syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, socketBuffer)
		syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, socketBuffer)
	})
}
