package connlimit

import (
	"net"
	"syscall"
)

// The memory of a connection at its worst, in bytes, is what the process holds (the header, the
// response, a stack and net/http's buffers, up to 48 KiB) and what the kernel holds (16 KiB of requests
// that have not been read, and up to 48 KiB of a response that the client does not take). Version 2 of
// control groups charges both to the container. So with the rest of the process,
// bound × connectionCost + processCost stays below the container's limit.
const (
	connectionCost = 112 << 10
	processCost    = 8 << 20

	// socketBuffer bounds the kernel's part, each way. Linux doubles it, and lets one write exceed it.
	socketBuffer = 8 << 10

	minConnections = 32    // however little memory there is
	maxConnections = 16384 // however much
	reservedFiles  = 16    // file descriptors that are not for connections
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

// setBuffers bounds the buffers of the connections that listener accepts, which inherit them. After
// accepting it would be too late, because clients send before: 5,000 that never read took 25 MB of
// the kernel's memory for 256 connections that way.
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
