//go:build kubernetes

package kubernetes

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"devops-info-service/test/harness"
)

// kubectl runs kubectl in the namespace restricted and returns its output. The error has its messages.
type kubectl func(stdin string, args ...string) (string, error)

const (
	startTimeout = time.Minute
	testTimeout  = 3 * time.Minute // everything that the test has started is killed after this
)

// startCluster starts etcd and an API server on this machine's loopback. Both stop when the test ends.
func startCluster(t *testing.T) kubectl {
	etcd, err := exec.LookPath("etcd")
	if err != nil {
		t.Fatal("etcd is missing: apt-get install -y --no-install-recommends etcd-server")
	}
	bin, err := filepath.Abs(os.Getenv("KUBERNETES"))
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	log, err := os.Create(filepath.Join(folder, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	ready := false
	t.Cleanup(func() {
		if data, _ := os.ReadFile(log.Name()); !ready {
			t.Logf("the last lines of etcd and the API server:\n%s", data[max(0, len(data)-4000):])
		}
	})

	etcdURL, peerURL := "http://127.0.0.1:"+harness.FreePort(t), "http://127.0.0.1:"+harness.FreePort(t)
	startProcess(t, ctx, log, etcd, "--data-dir="+folder+"/etcd",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL,
		"--initial-cluster=default="+peerURL)

	key := writeFile(t, folder+"/account.key", serviceAccountKey(t))
	tokens := writeFile(t, folder+"/tokens.csv", []byte("token,test,test,system:masters\n"))
	port := harness.FreePort(t)
	server := "https://127.0.0.1:" + port
	startProcess(t, ctx, log, bin+"/kube-apiserver", "--etcd-servers="+etcdURL,
		"--bind-address=127.0.0.1", "--secure-port="+port, "--cert-dir="+folder, // where it writes a certificate of its own
		"--endpoint-reconciler-type=none",                        // because no pod has to reach the API server
		"--token-auth-file="+tokens, "--authorization-mode=RBAC", // system:masters may do everything
		"--service-account-issuer="+server,
		"--service-account-key-file="+key, "--service-account-signing-key-file="+key)

	run := func(stdin string, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, bin+"/kubectl", append([]string{"--server=" + server, "--token=token",
			"--certificate-authority=" + folder + "/apiserver.crt", "--namespace=restricted"}, args...)...)
		cmd.Env = []string{"HOME=" + folder} // without the user's own clusters
		cmd.Stdin = strings.NewReader(stdin)
		var messages strings.Builder
		cmd.Stderr = &messages
		output, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("kubectl %s: %w: %s", args[0], err, messages.String())
		}
		return string(output), err
	}
	for deadline := time.Now().Add(startTimeout); !ready; time.Sleep(100 * time.Millisecond) {
		_, err := run("", "get", "--raw=/readyz")
		ready = err == nil
		if !ready && time.Now().After(deadline) {
			t.Fatalf("the API server is not ready after %v: %v", startTimeout, err)
		}
	}
	return run
}

// startProcess starts a program that runs until the test ends.
func startProcess(t *testing.T, ctx context.Context, log *os.File, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	harness.AtEnd(t, func() {
		cmd.Process.Kill() // no data has to outlive the test
		cmd.Wait()
	})
}

func serviceAccountKey(t *testing.T) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
}

func writeFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
