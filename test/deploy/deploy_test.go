// Package deploy tests that deploy/ leaves the service enough time to stop. No API server and no engine
// checks that, because they do not know what SHUTDOWN_DELAY and SHUTDOWN_TIMEOUT mean. It reads the
// files with regular expressions and does not understand YAML.
package deploy

import (
	"os"
	"regexp"
	"strconv"
	"testing"
)

// Each pattern matches whole seconds, or a number to multiply them by.
const (
	delay   = `SHUTDOWN_DELAY(?:.*\n\s+value)?: (\d+)s\b`
	timeout = `SHUTDOWN_TIMEOUT(?:.*\n\s+value)?: (\d+)s\b`
	grace   = `(?:terminationGracePeriodSeconds|stop_grace_period): (\d+)s?\b`
	probe   = `livenessProbe:(?s:.*?)periodSeconds: (\d+)\b(?s:.*?)failureThreshold: (\d+)\b`
)

// seconds is the product of the numbers that pattern captures in text, or 0 if it does not match.
func seconds(text, pattern string) int {
	groups := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if groups == nil {
		return 0
	}
	product := 1
	for _, group := range groups[1:] {
		n, _ := strconv.Atoi(group)
		product *= n
	}
	return product
}

func TestTimeToStop(t *testing.T) {
	for _, test := range []struct{ file, deadline string }{
		{"kubernetes.yaml", grace},
		{"kubernetes.yaml", probe},
		{"compose.yaml", grace},
	} {
		data, err := os.ReadFile("../../deploy/" + test.file)
		if err != nil {
			t.Fatal(err)
		}
		text := string(data)
		stop, deadline := seconds(text, delay)+seconds(text, timeout), seconds(text, test.deadline)
		if seconds(text, delay) == 0 || seconds(text, timeout) == 0 || deadline <= stop {
			t.Errorf("%s: a stop takes up to %d s, and %s allows %d s", test.file, stop, test.deadline, deadline)
		}
	}
}
