package harness

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Engine is the container engine's command: what DOCKER names, or docker.
func Engine() string { return setting("DOCKER", "docker") }

// Image is the image under test: what IMAGE names, or the one that make build-multi builds.
func Image() string { return setting("IMAGE", "devops-go-multi") }

func setting(variable, otherwise string) string {
	if value := os.Getenv(variable); value != "" {
		return value
	}
	return otherwise
}

// Must runs a command of the engine, which has to succeed, and returns its output, both streams.
func Must(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	output, err := exec.CommandContext(ctx, Engine(), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", Engine(), strings.Join(args, " "), err, output)
	}
	return strings.TrimSpace(string(output))
}

var names atomic.Int64

// Unique is a name for one container or image of this run.
func Unique() string {
	return fmt.Sprintf("devops-info-service-test-%d-%d", os.Getpid(), names.Add(1))
}

// Container starts image until the test ends and returns the container's name. The arguments are
// those of docker run, before the image.
func Container(t testing.TB, image string, arguments ...string) string {
	t.Helper()
	name := Unique()
	AtEnd(t, func() { exec.Command(Engine(), "rm", "-f", name).Run() })
	Must(t, append(append([]string{"run", "-d", "--name", name}, arguments...), image)...)
	return name
}

// Published starts image with its port published, waits until /health answers 200, and returns the
// container's name and address.
func Published(t testing.TB, image string, arguments ...string) (name, address string) {
	t.Helper()
	name = Container(t, image, append([]string{"-p", "127.0.0.1::5002"}, arguments...)...)
	address, _, _ = strings.Cut(Must(t, "port", name, "5002/tcp"), "\n")
	WaitForHealth(t, address)
	return name, address
}

// WaitForHealth waits until /health answers 200 at address.
func WaitForHealth(t testing.TB, address string) {
	t.Helper()
	WaitFor(t, "200 from /health at "+address, func() bool { return Healthy(address) })
}

// Healthy reports whether /health answers 200 at address within a second.
func Healthy(address string) bool {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	io.WriteString(conn, "GET /health HTTP/1.0\r\n\r\n")
	response, _ := io.ReadAll(conn)
	return strings.HasPrefix(string(response), "HTTP/1.0 200 ")
}
