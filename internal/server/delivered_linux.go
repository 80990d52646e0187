package server

import (
	"net"
	"syscall"
)

// delivered reports whether the kernel has nothing left to send, after the stream has been ended: the client's
// kernel has acknowledged its end, or the connection is gone.
func delivered(tcp *net.TCPConn) bool {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return true
	}
	// The first byte of the struct tcp_info of tcp(7) is the state. Of the standard library, only the function
	// for an address returns bytes.
	var info [4]byte
	raw.Control(func(fd uintptr) {
		info, _ = syscall.GetsockoptInet4Addr(int(fd), syscall.IPPROTO_TCP, syscall.TCP_INFO)
	})
	switch info[0] {
	case 4, 9, 11: // FIN_WAIT1, LAST_ACK and CLOSING, as in the kernel's net/tcp_states.h
		return false
	}
	return true
}
