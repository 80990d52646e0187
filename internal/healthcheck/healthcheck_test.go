package healthcheck_test

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"devops-info-service/internal/healthcheck"
	"devops-info-service/test/harness"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		response string // nothing is sent where empty
		want     string // in the error; empty: no error
	}{
		"200":                  {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""},
		"200 without its body": {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", ""},
		"503":                  {"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "answered 503 Service Unavailable"},
		"204":                  {"HTTP/1.1 204 No Content\r\n\r\n", "answered 204 No Content"},
		"another protocol":     {"SSH-2.0-OpenSSH\r\n", "malformed HTTP response"},
		"half a response":      {"HTTP/1.1 200 OK\r\n", "unexpected EOF"},
		"no response":          {"", "i/o timeout"},
	} {
		listener := harness.Listen(t)
		received := make(chan *http.Request, 1)
		response := test.response
		go func() {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			request, _ := http.ReadRequest(bufio.NewReader(conn))
			received <- request
			if response == "" {
				conn.Read(make([]byte, 1)) // until the check gives up
			}
			io.WriteString(conn, response)
		}()
		began := time.Now()
		err := healthcheck.Check("tcp", listener.Addr().String())
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got the error %v, want %q", name, err, test.want)
		}
		// The rest of the time is for a busy machine.
		if took := time.Since(began); took > healthcheck.Timeout+5*time.Second {
			t.Errorf("%s: took %v, want %v at most", name, took, healthcheck.Timeout)
		}
		if r := <-received; r == nil || r.Method != "GET" || r.URL.Path != "/health" || !r.Close {
			t.Errorf("%s: got the request %+v, want GET /health with Connection: close", name, r)
		}
	}
}

func TestCheckFailsWhereNobodyListens(t *testing.T) {
	t.Parallel()
	err := healthcheck.Check("tcp", "127.0.0.1:"+harness.FreePort(t))
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got the error %v, want connection refused", err)
	}
}
