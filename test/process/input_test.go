package process

import (
	"bufio"
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

func TestBadInputGetsA4xxOrAClose(t *testing.T) {
	t.Parallel()
	_, address := harness.Launch(t)
	const get, post, host, end = "GET / HTTP/1.1\r\n", "POST / HTTP/1.1\r\n", "Host: localhost\r\n", "\r\n"
	const closed = 0 // without a response
	for name, test := range map[string]struct {
		sent string
		want []int // one of these
	}{
		"garbage":                      {"\x00\xff\xfe\r\n\r\n", []int{400}},
		"HTTP/2 preface":               {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{404}},
		"no Host":                      {get + end, []int{400}},
		"two Hosts":                    {get + host + host + end, []int{400}},
		"length and chunks":            {post + host + "Content-Length: 9\r\nTransfer-Encoding: chunked\r\n" + end + "0\r\n\r\n", []int{400, 405}},
		"a length that is too long":    {post + host + "Content-Length: 99\r\n" + end + "short", []int{405}},
		"a length that is too short":   {post + host + "Content-Length: 1\r\n" + end + "longer", []int{405}},
		"a length beyond 64 bits":      {post + host + "Content-Length: 99999999999999999999\r\n" + end, []int{400}},
		"a bad chunk":                  {post + host + "Transfer-Encoding: chunked\r\n" + end + "zz\r\n", []int{405}},
		"an unknown coding":            {post + host + "Transfer-Encoding: gzip\r\n" + end, []int{400, 501}},
		"an unknown expectation":       {get + host + "Expect: tea\r\n" + end, []int{417}},
		"half a request, half-closed":  {"GET / HTTP/1.1\r\nHost: lo", []int{400, closed}},
		"nothing, half-closed":         {"", []int{closed}},
		"a whole request, half-closed": {get + host + end, []int{200}},
	} {
		conn := harness.Dial(t, address)
		harness.Write(t, conn, test.sent)
		conn.CloseWrite()
		got := closed
		if response, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
			got = response.StatusCode
		}
		if !slices.Contains(test.want, got) {
			t.Errorf("%s: got %d, want one of %v", name, got, test.want)
		}
	}
	conn := tls.Client(harness.Dial(t, address), &tls.Config{ServerName: "localhost"})
	if err := conn.Handshake(); err == nil || os.IsTimeout(err) {
		t.Errorf("a TLS hello: got the error %v, want the connection closed", err)
	}
	if response, _ := harness.Get(t, address, "/health"); response.StatusCode != 200 {
		t.Errorf("/health after all that: got %d, want 200", response.StatusCode)
	}
}

func TestSlowHeaderIsClosedAfter5s(t *testing.T) {
	t.Parallel()
	_, address := harness.Launch(t)
	conn := harness.Dial(t, address)
	began := time.Now()
	go func() {
		for err := error(nil); err == nil; time.Sleep(100 * time.Millisecond) {
			_, err = io.WriteString(conn, "x")
		}
	}()
	io.Copy(io.Discard, conn)
	if took := time.Since(began); took < 5*time.Second || took > 8*time.Second {
		t.Errorf("closed after %v, want about 5 s", took)
	}
}
