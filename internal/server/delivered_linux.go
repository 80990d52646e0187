package server

import (
	"net"
	"syscall"
)

// delivered reports whether the client's kernel has all that was sent, after the stream has been ended. Until
// then this kernel keeps it in memory.
func delivered(tcp *net.TCPConn) bool {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return true
	}
	var info [4]byte // the first bytes of the struct tcp_info of tcp(7), whose first is the state
	raw.Control(func(fd uintptr) {
		info, err = syscall.GetsockoptInet4Addr(int(fd), syscall.IPPROTO_TCP, syscall.TCP_INFO)
	})
	switch info[0] {
	case 4, 9, 11: // FIN_WAIT1, LAST_ACK and CLOSING of the kernel's net/tcp_states.h: the end is not acknowledged
		return false
	}
	return true
}
