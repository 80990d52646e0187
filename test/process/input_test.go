package process

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"devops-info-service/test/harness"
)

func TestBadInputGetsA4xxOrAClose(t *testing.T) {
	t.Parallel()
	_, address := harness.Launch(t)
	const get, post, host, end = "GET / HTTP/1.1\r\n", "POST / HTTP/1.1\r\n", "Host: localhost\r\n", "\r\n"
	const closed = 0 // without a response
	shortFields := func(n int) string { return strings.Repeat("a:\n", n) }
	longField := "X-Long: " + strings.Repeat("x", 8<<10) + "\r\n"
	for name, test := range map[string]struct {
		sent string
		want []int // one of these
	}{
		"garbage":                      {"\x00\xff\xfe\r\n\r\n", []int{400}},
		"text":                         {"hello there\r\n\r\n", []int{400}},
		"another protocol":             {"SSH-2.0-OpenSSH_9.9\r\n", []int{400}},
		"HTTP/2 preface":               {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{404}},
		"100 header lines":             {get + host + shortFields(98) + longField + end, []int{200}},
		"101 header lines":             {get + host + shortFields(99) + longField + end, []int{400}},
		"no Host":                      {get + end, []int{400}},
		"two Hosts":                    {get + host + host + end, []int{400}},
		"a header without a colon":     {get + host + "oops\r\n" + end, []int{400}},
		"a space before the colon":     {get + host + "A : b\r\n" + end, []int{400}},
		"NUL in a header":              {get + host + "A: \x00\r\n" + end, []int{400}},
		"a bad escape":                 {"GET /%zz HTTP/1.1\r\n" + host + end, []int{400}},
		"another version":              {"GET / HTTP/3.0\r\n" + host + end, []int{400, 505}},
		"a negative length":            {post + host + "Content-Length: -1\r\n" + end, []int{400}},
		"two lengths":                  {post + host + "Content-Length: 1\r\nContent-Length: 2\r\n" + end, []int{400}},
		"length and chunks":            {post + host + "Content-Length: 9\r\nTransfer-Encoding: chunked\r\n" + end + "0\r\n\r\n", []int{400, 405}},
		"a length that is too long":    {post + host + "Content-Length: 99\r\n" + end + "short", []int{405}},
		"a length that is too short":   {post + host + "Content-Length: 1\r\n" + end + "longer", []int{405}},
		"a length beyond 64 bits":      {post + host + "Content-Length: 99999999999999999999\r\n" + end, []int{400}},
		"a bad chunk":                  {post + host + "Transfer-Encoding: chunked\r\n" + end + "zz\r\n", []int{405}},
		"a body of 150 lines":          {post + host + "Content-Length: 300\r\n" + end + strings.Repeat("a\n", 150), []int{405}},
		"an unknown coding":            {post + host + "Transfer-Encoding: gzip\r\n" + end, []int{400, 501}},
		"an unknown expectation":       {get + host + "Expect: tea\r\n" + end, []int{417}},
		"half a request, half-closed":  {"GET / HTTP/1.1\r\nHost: lo", []int{400, closed}},
		"nothing, half-closed":         {"", []int{closed}},
		"a whole request, half-closed": {get + host + end, []int{200}},
	} {
		test := test
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := harness.Dial(t, address)
			io.WriteString(conn, test.sent)
			conn.CloseWrite()
			got := closed
			if response, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
				got = response.StatusCode
			}
			found := false
			for _, want := range test.want {
				found = found || got == want
			}
			if !found {
				t.Errorf("got %d, want one of %v", got, test.want)
			}
			if response, _ := harness.Get(t, address, "/health"); response.StatusCode != 200 {
				t.Errorf("/health after it: got %d, want 200", response.StatusCode)
			}
		})
	}
	t.Run("a TLS hello", func(t *testing.T) {
		t.Parallel()
		conn := tls.Client(harness.Dial(t, address), &tls.Config{ServerName: "localhost"})
		if err := conn.Handshake(); err == nil || os.IsTimeout(err) {
			t.Errorf("got the error %v, want the connection closed", err)
		}
	})
}

func TestHeaderLimitIs16KiB(t *testing.T) {
	t.Parallel()
	_, address := harness.Launch(t)
	const maxHeaderBytes = 16 << 10
	for name, test := range map[string]struct{ size, want int }{
		"16 KiB":              {maxHeaderBytes, 200},
		"16 KiB and one byte": {maxHeaderBytes + 1, 431},
	} {
		t.Run(name, func(t *testing.T) {
			if response, _ := harness.Send(t, address, "GET", harness.LargeRequest(test.size)); response.StatusCode != test.want {
				t.Errorf("got %d, want %d", response.StatusCode, test.want)
			}
		})
	}
}

// A body is neither waited for before the response nor kept.
func TestBodiesOf100MBCostUnder4MB(t *testing.T) {
	t.Parallel()
	p, address := harness.Launch(t)
	harness.Get(t, address, "/")
	before := harness.Memory(t, p.Cmd.Process.Pid, "RssAnon")
	block := bytes.Repeat([]byte("x"), 64<<10)
	chunk := append([]byte("10000\r\n"), append(block, "\r\n"...)...)
	for name, test := range map[string]struct {
		header string
		piece  []byte // of the body, which repeats it
	}{
		"a length":                      {"Content-Length: 104857600", block},
		"chunks without end":            {"Transfer-Encoding: chunked", chunk},
		"an expectation of 100":         {"Content-Length: 104857600\r\nExpect: 100-continue", block},
		"a chunk extension without end": {"Transfer-Encoding: chunked\r\nX: y", append([]byte("1;"), block...)},
	} {
		test := test
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			results := make(chan error, 3)
			for i := 0; i < cap(results); i++ {
				conn := harness.Dial(t, address)
				harness.Write(t, conn, "POST /health HTTP/1.1\r\nHost: localhost\r\n"+test.header+"\r\n\r\n")
				if response, _ := harness.Receive(t, bufio.NewReader(conn), "POST"); response.StatusCode != 405 {
					t.Errorf("got %d, want 405 before the body", response.StatusCode)
				}
				go func() { results <- writeUntilClosed(conn, test.piece) }()
			}
			for i := 0; i < cap(results); i++ {
				if err := <-results; err != nil {
					t.Error(err)
				}
				grown := harness.Memory(t, p.Cmd.Process.Pid, "RssAnon") - before
				if limit := 4 << 20; grown > limit && !harness.RaceEnabled() {
					t.Errorf("memory grew by %d KB, want %d KB at most", grown/1024, limit/1024)
				}
			}
		})
	}
}

// writeUntilClosed writes up to 100 MB. It returns an error if the other end takes all of it.
func writeUntilClosed(conn net.Conn, piece []byte) error {
	for sent := 0; sent < 100<<20; {
		n, err := conn.Write(piece)
		if err != nil {
			return nil
		}
		sent += n
	}
	return errors.New("the service took the whole body")
}
