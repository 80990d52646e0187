package harness

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// Dial connects until the test ends. Reading and writing fail after 15 seconds.
func Dial(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(15 * time.Second))
	return conn.(*net.TCPConn)
}

// Write writes bytes to a connection.
func Write(t testing.TB, conn net.Conn, bytes string) {
	t.Helper()
	if _, err := io.WriteString(conn, bytes); err != nil {
		t.Fatal(err)
	}
}

// Receive reads the response to a request of that method. It takes a reader because one connection
// may carry several responses.
func Receive(t testing.TB, reader *bufio.Reader, method string) (response *http.Response, body string) {
	t.Helper()
	response, err := http.ReadResponse(reader, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("reading the response: %v", err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("reading the body: %v", err)
	}
	return response, string(content)
}

// Send writes bytes to a new connection and reads the response to a request of that method.
func Send(t testing.TB, address, method, bytes string) (response *http.Response, body string) {
	t.Helper()
	conn := Dial(t, address)
	defer conn.Close()
	Write(t, conn, bytes)
	return Receive(t, bufio.NewReader(conn), method)
}

// Request sends a request without a body on a new connection. Each header ends in CRLF.
func Request(t testing.TB, address, method, target, headers string) (response *http.Response, body string) {
	t.Helper()
	return Send(t, address, method, method+" "+target+" HTTP/1.1\r\nHost: localhost\r\n"+headers+"\r\n")
}

// Get sends a GET request on a new connection.
func Get(t testing.TB, address, path string) (response *http.Response, body string) {
	t.Helper()
	return Request(t, address, http.MethodGet, path, "")
}

// Refused reports whether nobody listens at address.
func Refused(address string) bool {
	conn, err := net.Dial("tcp", address)
	if err == nil {
		conn.Close()
	}
	return err != nil
}

// Closed reports whether the other end has closed conn, which has nothing to read.
func Closed(conn net.Conn) bool {
	conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	defer conn.SetReadDeadline(time.Now().Add(15 * time.Second))
	_, err := conn.Read(make([]byte, 1))
	return err != nil && !os.IsTimeout(err)
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
