// Check reads the service's Kubernetes manifests into the API's own types, strictly, and then
// checks what no schema says: that the objects fit together and that a pod can finish its work.
//
//	go run . ../kubernetes.yaml
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run . FILE")
		os.Exit(2)
	}
	data, err := os.ReadFile(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	objects, problems := decode(data)
	if len(problems) == 0 { // else what follows from them is not worth saying
		problems = check(objects)
	}
	for _, problem := range problems {
		fmt.Fprintln(os.Stderr, problem)
	}
	if len(problems) > 0 {
		os.Exit(1)
	}
	for _, object := range objects {
		fmt.Println("ok", kind(object)+"/"+object.(metav1.Object).GetName())
	}
}

// decode reads every document in data. Unknown kinds, unknown or repeated fields and values of the
// wrong type are problems, and so is any object besides the four that check knows.
func decode(data []byte) (objects []runtime.Object, problems []error) {
	scheme := runtime.NewScheme()
	err := errors.Join(appsv1.AddToScheme(scheme), corev1.AddToScheme(scheme),
		policyv1.AddToScheme(scheme), autoscalingv2.AddToScheme(scheme))
	if err != nil {
		return nil, []error{err}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	var kinds []string
	for n := 1; ; n++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, append(problems, err)
		}
		object, _, err := decoder.Decode(document, nil, nil)
		if err != nil {
			problems = append(problems, fmt.Errorf("document %d: %w", n, err))
			continue
		}
		objects, kinds = append(objects, object), append(kinds, kind(object))
	}
	want := []string{"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
	if len(problems) == 0 && !slices.Equal(kinds, want) {
		problems = append(problems, fmt.Errorf("got the objects %v, want %v", kinds, want))
	}
	return objects, problems
}

func kind(object runtime.Object) string { return object.GetObjectKind().GroupVersionKind().Kind }

// check returns what does not fit together in the objects that decode returned.
func check(objects []runtime.Object) (problems []error) {
	deployment := objects[0].(*appsv1.Deployment)
	service := objects[1].(*corev1.Service)
	budget := objects[2].(*policyv1.PodDisruptionBudget)
	scaler := objects[3].(*autoscalingv2.HorizontalPodAutoscaler)
	pod := deployment.Spec.Template.Spec

	expect := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	equal := equality.Semantic.DeepEqual // a nil pointer equals no value, an empty list equals nil
	selects := func(selector *metav1.LabelSelector) bool {
		s, err := metav1.LabelSelectorAsSelector(selector)
		return err == nil && !s.Empty() && s.Matches(labels.Set(deployment.Spec.Template.Labels))
	}
	seconds := func(n int64) time.Duration { return time.Duration(n) * time.Second }

	// Who finds whom.
	expect(selects(deployment.Spec.Selector), "Deployment: selector does not match the pods")
	expect(selects(&metav1.LabelSelector{MatchLabels: service.Spec.Selector}), "Service: selector does not match the pods")
	expect(selects(budget.Spec.Selector), "PodDisruptionBudget: selector does not match the pods")
	expect(len(pod.TopologySpreadConstraints) > 0, "Deployment: no topologySpreadConstraints")
	for _, spread := range pod.TopologySpreadConstraints {
		expect(selects(spread.LabelSelector), "Deployment: topologySpreadConstraint on %s: selector does not match the pods", spread.TopologyKey)
	}
	target := autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: deployment.Name}
	expect(scaler.Spec.ScaleTargetRef == target, "HorizontalPodAutoscaler: scaleTargetRef is not the Deployment")

	// How many pods there are.
	expect(equal(deployment.Spec.Replicas, new(int32(3))), "Deployment: replicas is not 3")
	expect(equal(scaler.Spec.MinReplicas, new(int32(3))), "HorizontalPodAutoscaler: minReplicas is not 3")
	expect(equal(deployment.Spec.Strategy.RollingUpdate, &appsv1.RollingUpdateDeployment{
		MaxUnavailable: new(intstr.FromInt32(0)), MaxSurge: new(intstr.FromInt32(1)),
	}), "Deployment: rollingUpdate is not maxUnavailable 0, maxSurge 1")

	// What the pod may do.
	expect(equal(pod.AutomountServiceAccountToken, new(false)), "Deployment: automountServiceAccountToken is not false")
	expect(equal(pod.EnableServiceLinks, new(false)), "Deployment: enableServiceLinks is not false")
	expect(equal(pod.SecurityContext, &corev1.PodSecurityContext{
		RunAsNonRoot: new(true), RunAsUser: new(int64(10001)), RunAsGroup: new(int64(10001)),
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}), "Deployment: the pod's securityContext is not the one demanded")
	expect(len(pod.Containers) == 1, "Deployment: %d containers, want 1", len(pod.Containers))
	if len(pod.Containers) != 1 {
		return problems
	}
	container := pod.Containers[0]
	expect(equal(container.SecurityContext, &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}), "Deployment: the container's securityContext is not the one demanded")
	for _, resource := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		request, limit := container.Resources.Requests[resource], container.Resources.Limits[resource]
		expect(request.Sign() > 0 && request.Cmp(limit) <= 0, "Deployment: %s: request %v, limit %v", resource, &request, &limit)
	}

	// How it is reached.
	reached := func(port intstr.IntOrString) bool {
		return slices.ContainsFunc(container.Ports, func(p corev1.ContainerPort) bool { return p.Name != "" && p.Name == port.StrVal })
	}
	expect(len(service.Spec.Ports) > 0, "Service: no ports")
	for _, port := range service.Spec.Ports {
		expect(reached(port.TargetPort), "Service: targetPort %v is no named port of the container", &port.TargetPort)
	}
	asks := func(probe *corev1.Probe) bool {
		return probe != nil && probe.HTTPGet != nil && probe.HTTPGet.Path == "/health" && reached(probe.HTTPGet.Port)
	}
	expect(asks(container.ReadinessProbe), "Deployment: readinessProbe does not get /health from a named port")
	expect(asks(container.LivenessProbe), "Deployment: livenessProbe does not get /health from a named port")

	// That it has the time to stop. While it does, /health answers 503.
	stop, err := longestStop(container.Env)
	expect(err == nil, "Deployment: %v", err)
	grace := pod.TerminationGracePeriodSeconds
	expect(grace != nil && seconds(*grace) > stop, "Deployment: terminationGracePeriodSeconds is not above the %v that a stop can take", stop)
	if probe := container.LivenessProbe; probe != nil {
		patience := seconds(int64(probe.FailureThreshold) * int64(probe.PeriodSeconds))
		expect(patience > stop, "Deployment: livenessProbe kills after %v, not above the %v that a stop can take", patience, stop)
	}
	return problems
}

// longestStop is SHUTDOWN_DELAY and SHUTDOWN_TIMEOUT together, as the service would read them.
func longestStop(env []corev1.EnvVar) (sum time.Duration, err error) {
	values := map[string]string{"SHUTDOWN_DELAY": "0s", "SHUTDOWN_TIMEOUT": "8s"} // the service's defaults
	for _, variable := range env {
		if values[variable.Name] != "" {
			values[variable.Name] = variable.Value
		}
	}
	for name, value := range values {
		duration, parseErr := time.ParseDuration(value)
		if parseErr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", name, parseErr))
		}
		sum += duration
	}
	return sum, err
}
