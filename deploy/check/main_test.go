package main

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	data, err := os.ReadFile("../kubernetes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name     string
		old, new string // the first old becomes new
		want     string // in what is reported; empty: nothing is
	}{
		{name: "as it is"},

		{"unknown field", "minReadySeconds:", "minReadySecond:", `unknown field "spec.minReadySecond"`},
		{"field of another case", "httpGet:", "HTTPGet:", `unknown field "spec.template.spec.containers[0].readinessProbe.HTTPGet"`},
		{"field a level too high", "  strategy:\n    rollingUpdate:", "  rollingUpdate:\n    strategy:", `unknown field "spec.rollingUpdate"`},
		{"repeated field", "maxReplicas: 10", "maxReplicas: 10\n  maxReplicas: 11", `"maxReplicas" already set in map`},
		{"string for a number", "containerPort: 5002", "containerPort: http", "cannot unmarshal string"},
		{"number for a string", "value: 8s", "value: 8", "cannot unmarshal number"},
		{"quantity", "cpu: 100m", "cpu: 100 m", "quantities must match"},
		{"unknown kind", "kind: Deployment", "kind: Deplyoment", `no kind "Deplyoment" is registered`},
		{"version that is gone", "autoscaling/v2", "autoscaling/v2beta2", "autoscaling/v2beta2"},
		{"not YAML", "spec:", "spec", "document 1: "},
		{"object left out", "---\napiVersion: v1\nkind: Service", "---\napiVersion: v1\nkind: ServiceAccount", "unknown field"},
		{"object not expected", "---\n", "---\napiVersion: v1\nkind: Secret\n---\n", "got the objects [Deployment Secret Service"},

		{"Service finds no pods", "  selector:\n    app.kubernetes.io/name: devops", "  selector:\n    app.kubernetes.io/name: dev", "Service: selector"},
		{"Service finds all pods", "  selector:\n    app.kubernetes.io/name: devops-info-service\n", "", "Service: selector"},
		{"Deployment finds no pods", "  selector:\n    matchLabels:\n", "  selector:\n    matchLabels:\n      a: b\n", "Deployment: selector"},
		{"budget finds no pods", "AlwaysAllow # a pod that is not ready must not hold up a drain\n  selector:\n    matchLabels:\n", "AlwaysAllow\n  selector:\n    matchLabels:\n      a: b\n", "PodDisruptionBudget: selector"},
		{"spread counts no pods", "          labelSelector:\n            matchLabels:\n", "          labelSelector:\n            matchLabels:\n              a: b\n", "topologySpreadConstraint on kubernetes.io/hostname: selector"},
		{"Service to no port", "targetPort: http", "targetPort: web", "Service: targetPort web"},
		{"probe of no port", "port: http\n", "port: web\n", "readinessProbe does not get /health"},
		{"autoscaler of nothing", "kind: Deployment\n    name: devops", "kind: Deployment\n    name: dev", "scaleTargetRef is not the Deployment"},

		{"fewer than three", "replicas: 3", "replicas: 2", "replicas is not 3"},
		{"too few replicas", "minReplicas: 3", "minReplicas: 2", "minReplicas is not 3"},
		{"rollout goes below", "maxUnavailable: 0", "maxUnavailable: 1", "rollingUpdate is not maxUnavailable 0"},
		{"rollout goes below, in percent", "maxUnavailable: 0", "maxUnavailable: 25%", "rollingUpdate is not maxUnavailable 0"},

		{"grace too short", "PeriodSeconds: 20", "PeriodSeconds: 18", "terminationGracePeriodSeconds is not above the 18s"},
		{"grace by default", "terminationGracePeriodSeconds: 20\n", "\n", "terminationGracePeriodSeconds is not above the 18s"},
		{"delay too long", "value: 10s", "value: 12s", "terminationGracePeriodSeconds is not above the 20s"},
		{"timeout by default", "- name: SHUTDOWN_TIMEOUT", "- name: OTHER", ""},
		{"delay that is no duration", "value: 10s", `value: "10"`, "SHUTDOWN_DELAY: time: missing unit"},
		{"delay longer than the liveness probe waits", "value: 10s", "value: 90s", "livenessProbe kills after 1m30s, not above the 1m38s"},
		{"probe of another path", "path: /health", "path: /", "readinessProbe does not get /health"},
		{"container left over", "      containers:\n", "      containers:\n        - name: other\n", "2 containers, want 1"},
		{"liveness too eager", "failureThreshold: 9", "failureThreshold: 1", "livenessProbe kills after 10s"},
		{"no liveness", "livenessProbe:", "startupProbe:", "livenessProbe does not get /health"},

		{"root allowed", "runAsNonRoot: true", "runAsNonRoot: false", "the pod's securityContext"},
		{"other user", "runAsUser: 10001", "runAsUser: 1000", "the pod's securityContext"},
		{"privileges", "allowPrivilegeEscalation: false\n", "privileged: true\n", "the container's securityContext"},
		{"capability kept", "drop: [ALL]", "drop: [NET_RAW]", "the container's securityContext"},
		{"token mounted", "automountServiceAccountToken: false", "automountServiceAccountToken: true", "automountServiceAccountToken is not false"},
		{"service links", "enableServiceLinks: false", "enableServiceLinks: true", "enableServiceLinks is not false"},
		{"no limit", "memory: 64Mi", "ephemeral-storage: 64Mi", "memory: request 16Mi, limit 0"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			broken := strings.Replace(string(data), test.old, test.new, 1)
			if test.old != test.new && broken == string(data) {
				t.Fatalf("%q is not in the file", test.old)
			}
			objects, problems := decode([]byte(broken))
			if len(problems) == 0 {
				problems = check(objects)
			}
			got := ""
			if err := errors.Join(problems...); err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, test.want) || (test.want == "") != (got == "") {
				t.Errorf("got %q, want %q in it", got, test.want)
			}
		})
	}
}
