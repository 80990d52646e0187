//go:build kubernetes

// Package kubernetes tests that a Kubernetes API server accepts deploy/ in a namespace that enforces the
// Pod Security Standard "restricted", and that it refuses broken copies. No pod runs, because there is no
// kubelet. It needs etcd, and the folder KUBERNETES with kube-apiserver and kubectl.
package kubernetes

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"devops-info-service/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

const manifest = "../../deploy/kubernetes.yaml"

const namespace = `{"apiVersion": "v1", "kind": "Namespace", "metadata":
	{"name": "restricted", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}`

func TestDeploy(t *testing.T) {
	data, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	kubectl := startCluster(t)
	if _, err := kubectl(namespace, "create", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	// In a whole cluster, the controller manager creates this account in every namespace.
	if _, err := kubectl("", "create", "serviceaccount", "default"); err != nil {
		t.Fatal(err)
	}

	for _, source := range [][]string{{"-f", manifest}, {"-k", filepath.Dir(manifest)}} {
		t.Run("apply "+source[0], func(t *testing.T) {
			output, err := kubectl("", "apply", "--server-side", "--validate=strict", source[0], source[1])
			if err != nil {
				t.Fatal(err)
			}
			t.Log(output)
		})
	}

	for _, test := range []struct {
		name     string
		old, new string // the first old in the manifest becomes new
		want     string // in the reason why it is refused; empty: it is not
	}{
		{name: "a pod of the Deployment"},
		{"unknown field", "minReadySeconds:", "minReadySecond:", "minReadySecond: field not declared in schema"},
		{"selector of other labels", "matchLabels:\n", "matchLabels:\n      a: b\n", "`selector` does not match template `labels`"},
		{"root", "runAsNonRoot: true", "runAsNonRoot: false", `violates PodSecurity "restricted:latest": runAsNonRoot != true`},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := strings.Replace(string(data), test.old, test.new, 1)
			if test.old != test.new && text == string(data) {
				t.Fatalf("%q is not in %s", test.old, manifest)
			}
			err := tryPod(kubectl, text)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got error %v, want %q in it", err, test.want)
			}
			t.Log(err)
		})
	}
}

// tryPod applies a manifest and creates a pod of its Deployment's template, as the Deployment's
// controller would. Both are dry runs, in which the API server checks everything and stores nothing.
func tryPod(kubectl kubectl, manifest string) error {
	output, err := kubectl(manifest, "apply", "--server-side", "--validate=strict", "--dry-run=server", "-o", "json", "-f", "-")
	if err != nil {
		return err
	}
	var list struct {
		Items []struct {
			Kind string
			Spec struct{ Template map[string]any }
		}
	}
	if err := json.Unmarshal([]byte(output), &list); err != nil {
		return err
	}
	for _, item := range list.Items {
		if item.Kind == "Deployment" {
			pod := item.Spec.Template
			pod["apiVersion"], pod["kind"] = "v1", "Pod"
			pod["metadata"].(map[string]any)["name"] = "pod"
			data, err := json.Marshal(pod)
			if err != nil {
				return err
			}
			_, err = kubectl(string(data), "create", "--dry-run=server", "-f", "-")
			return err
		}
	}
	return errors.New("no Deployment in the output of kubectl apply")
}
