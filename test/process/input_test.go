package process

import (
	"bufio"
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

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
		"HTTP/2 preface":               {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{404}},
		"100 header lines":             {get + host + shortFields(98) + longField + end, []int{200}},
		"101 header lines":             {get + host + shortFields(99) + longField + end, []int{400}},
		"a header of 16 KiB":           {harness.LargeRequest(16 << 10), []int{200}},
		"a header of one byte more":    {harness.LargeRequest(16<<10 + 1), []int{431}},
		"no Host":                      {get + end, []int{400}},
		"two Hosts":                    {get + host + host + end, []int{400}},
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
			if !slices.Contains(test.want, got) {
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
