package server

import (
	"net"
	"syscall"
)

// setBuffers bounds the kernel's buffers of a socket.
func setBuffers(fd uintptr) {
	syscall.SetsockoptInt(syscall.Handle(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, socketBuffer)
	syscall.SetsockoptInt(syscall.Handle(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, socketBuffer)
}

// delivered is true, because Windows does not say.
func delivered(*net.TCPConn) bool { return true }
