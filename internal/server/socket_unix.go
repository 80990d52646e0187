//go:build unix

package server

import (
	"encoding/binary"
	"net"
	"runtime"
	"syscall"
)

// setBuffers bounds the kernel's buffers of a socket.
func setBuffers(fd uintptr) {
	syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, socketBuffer)
	syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, socketBuffer)
}

// delivered is called when both ends have ended their streams. It reports whether the client's kernel has acknowledged
// ours, or the connection is gone. Only Linux says, so it is true elsewhere.
func delivered(tcp *net.TCPConn) bool {
	raw, err := tcp.SyscallConn()
	if err != nil || runtime.GOOS != "linux" {
		return true
	}
	const tcpInfo = 11 // TCP_INFO of tcp(7), a struct whose first byte is the connection's state
	var info [4]byte
	raw.Control(func(fd uintptr) {
		firstFour, _ := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpInfo)
		binary.NativeEndian.PutUint32(info[:], uint32(firstFour))
	})
	const lastAck, closing = 9, 11 // of the kernel's net/tcp_states.h
	return info[0] != lastAck && info[0] != closing
}
