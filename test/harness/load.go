package harness

import (
	"bytes"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// Attack is what one client of a flood does with its connection until the service closes it.
type Attack func(*net.TCPConn)

// Flood opens n connections at once and gives each to a goroutine of its own. It returns what waits
// until all of them have ended.
func Flood(t testing.TB, address string, n int, attack Attack) (wait func()) {
	t.Helper()
	var clients sync.WaitGroup
	for i := 0; i < n; i++ {
		clients.Add(1)
		go func() {
			defer clients.Done()
			conn, err := net.DialTimeout("tcp", address, 20*time.Second)
			if err != nil {
				return // what counts is that other clients are served
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(60 * time.Second)) // the service is to close it long before
			attack(conn.(*net.TCPConn))
		}()
	}
	return clients.Wait
}

// Idle sends nothing.
func Idle(conn *net.TCPConn) {
	conn.Read(make([]byte, 1))
}

// Trickle sends a request that never ends, one byte a second.
func Trickle(conn *net.TCPConn) {
	for _, b := range []byte("GET / HTTP/1.1\r\nX-Slow: " + strings.Repeat("x", 60)) {
		if _, err := conn.Write([]byte{b}); err != nil {
			return
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := conn.Read(make([]byte, 1)); err != nil && !os.IsTimeout(err) {
			return
		}
	}
}

// NeverRead sends as many requests as the connection takes and reads nothing.
func NeverRead(conn *net.TCPConn) {
	conn.SetReadBuffer(1)
	requests := bytes.Repeat([]byte(SmallRequest), 1000)
	for {
		if _, err := conn.Write(requests); err != nil {
			return
		}
	}
}

// SendHalf sends half a request and then waits.
func SendHalf(half []byte) Attack {
	return func(conn *net.TCPConn) {
		conn.Write(half)
		conn.Read(make([]byte, 1))
	}
}

// SendWithoutReading sends whole requests once and reads nothing for that long.
func SendWithoutReading(requests []byte, hold time.Duration) Attack {
	return func(conn *net.TCPConn) {
		conn.SetReadBuffer(1)
		conn.Write(requests)
		time.Sleep(hold)
	}
}

// StallUpload sends a byte of a body a second, whatever the response, until the connection is reset.
func StallUpload(conn *net.TCPConn) {
	_, err := conn.Write([]byte("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"))
	for ; err == nil; _, err = conn.Write([]byte("x")) {
		time.Sleep(time.Second)
	}
}

// Reset sends a request and resets the connection.
func Reset(conn *net.TCPConn) {
	conn.Write([]byte(SmallRequest))
	conn.SetLinger(0) // the connection is closed next
}

// SmallRequest is the usual request for /.
const SmallRequest = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

// HalfRequest is the begin of SmallRequest. RestOfRequest completes it.
const (
	HalfRequest   = "GET / HTTP/1.1\r\nHost: local"
	RestOfRequest = "host\r\n\r\n"
)

// LargeRequest is a request of exactly size bytes with one large header field.
func LargeRequest(size int) string {
	const begin, end = "GET /health HTTP/1.1\r\nHost: localhost\r\nCookie: ", "\r\n\r\n"
	return begin + strings.Repeat("c", size-len(begin+end)) + end
}

// ShortFields is a request of about size bytes whose header fields are as short as different names
// can be, which costs net/http the most memory. It lacks the end of the header unless complete.
func ShortFields(size int, complete bool) []byte {
	request := []byte("GET / HTTP/1.1\r\nHost: localhost\r\n")
	for i := 0; len(request) < size-len("aaa:\n")-len("\r\n"); i++ {
		request = append(request, byte('a'+i%26), byte('a'+i/26%26), byte('a'+i/26/26%26), ':', '\n')
	}
	if complete {
		request = append(request, "\r\n"...)
	}
	return request
}
