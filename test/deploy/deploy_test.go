// Package deploy tests that deploy/ leaves the service enough time to stop. No API server and no engine
// checks that, because they do not know what SHUTDOWN_DELAY and SHUTDOWN_TIMEOUT mean. It reads the
// files with regular expressions and does not understand YAML.
package deploy

import (
	"os"
	"regexp"
	"strconv"
	"strings"
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
	for _, test := range []struct {
		name, file, deadline string
		old, new             string // the first old in the file becomes new
		enough               bool
	}{
		{name: "Kubernetes", file: "kubernetes.yaml", deadline: grace, enough: true},
		{name: "liveness probe", file: "kubernetes.yaml", deadline: probe, enough: true},
		{name: "Compose", file: "compose.yaml", deadline: grace, enough: true},

		{"Kubernetes, short grace", "kubernetes.yaml", grace, "PeriodSeconds: 20", "PeriodSeconds: 18", false},
		{"Kubernetes, long delay", "kubernetes.yaml", grace, "value: 10s", "value: 12s", false},
		{"liveness probe, one failure", "kubernetes.yaml", probe, "failureThreshold: 9", "failureThreshold: 1", false},
		{"Compose, long timeout", "compose.yaml", grace, "SHUTDOWN_TIMEOUT: 8s", "SHUTDOWN_TIMEOUT: 10s", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			data, err := os.ReadFile("../../deploy/" + test.file)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Replace(string(data), test.old, test.new, 1)
			stop, deadline := seconds(text, delay)+seconds(text, timeout), seconds(text, test.deadline)
			if seconds(text, delay) == 0 || seconds(text, timeout) == 0 || (deadline > stop) != test.enough {
				t.Errorf("a stop takes up to %d s of %d s allowed; enough: want %t", stop, deadline, test.enough)
			}
		})
	}
}
