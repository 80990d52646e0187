package main

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

const (
	starts         = 5 // of each image; their median counts
	readyTimeout   = 20 * time.Second
	requestTimeout = time.Second
	pollInterval   = 2 * time.Millisecond
)

// measureStarts starts each image several times, in turns. The last containers keep running.
func measureStarts(ctx context.Context, e *engine, r *report, ids map[string]string) error {
	times := map[string][]float64{}
	memories := map[string][]int64{}
	residents := map[string][]int64{}
	for i := 1; i <= starts; i++ {
		e.step("starting each image, %d of %d", i, starts)
		for _, kind := range kinds {
			container := e.name + "-" + kind
			if i > 1 {
				if err := e.removeContainer(ctx, container); err != nil {
					return err
				}
			}
			begun := time.Now()
			if err := e.create(ctx, container, "run", "-d", "--name", container, "-p", "127.0.0.1::5002", ids[kind]); err != nil {
				return err
			}
			address, err := waitUntilHealthy(ctx, e, container)
			if err != nil {
				return err
			}
			times[kind] = append(times[kind], time.Since(begun).Seconds())
			memory, err := memory(ctx, e, container)
			if err != nil {
				return err
			}
			memories[kind] = append(memories[kind], memory)
			if resident, ok := residentMemory(ctx, e, container); ok {
				residents[kind] = append(residents[kind], resident)
			}
			keys, err := responseKeys(ctx, address)
			if err != nil { // no keys make a claim false
				e.step("%s: %v", kind, err)
			}
			r.Images[kind].Keys = keys
		}
	}
	for kind, f := range r.Images {
		f.Start, f.Memory = median(times[kind]), median(memories[kind])
		if len(residents[kind]) > 0 {
			resident := median(residents[kind])
			f.Resident = &resident
		}
	}
	return nil
}

func median[T int64 | float64](values []T) T {
	slices.Sort(values)
	return values[len(values)/2]
}

// waitUntilHealthy asks a container for /health until it answers 200, and returns its address.
func waitUntilHealthy(ctx context.Context, e *engine, container string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	ports, err := e.output(ctx, "port", container, "5002/tcp")
	if err != nil {
		return "", err
	}
	address, _, _ := strings.Cut(ports, "\n") // the second line is the same port for IPv6
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		if _, err = get(ctx, "http://"+address+"/health"); err == nil {
			return address, nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%s does not answer /health within %v: %w", container, readyTimeout, err)
		case <-poll.C:
		}
	}
}

func get(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", url, response.Status)
	}
	return io.ReadAll(response.Body)
}

// memory is what docker stats says.
func memory(ctx context.Context, e *engine, container string) (int64, error) {
	usage, err := e.output(ctx, "stats", "--no-stream", "--format", "{{.MemUsage}}", container)
	if err != nil {
		return 0, err
	}
	return parseMemory(usage)
}

// parseMemory reads "1.5MiB / 2GiB" (docker) or "1.5MB / 2GB" (podman) in bytes.
func parseMemory(usage string) (int64, error) {
	units := map[string]float64{
		"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
	}
	used, _, _ := strings.Cut(usage, " ")
	digits := strings.TrimRight(used, "BKMGik")
	number, err := strconv.ParseFloat(digits, 64)
	unit, ok := units[used[len(digits):]]
	if err != nil || !ok {
		return 0, fmt.Errorf("memory %q: must be a number of bytes with its unit", usage)
	}
	return int64(number * unit), nil
}

// residentMemory sums the process's RssAnon and RssFile. The kernel shows them to every user of the
// machine the container runs on. Where that is another machine, cat in the container shows them,
// and scratch has no cat.
func residentMemory(ctx context.Context, e *engine, container string) (int64, bool) {
	var status string
	pid, err := e.output(ctx, "inspect", "-f", "{{.State.Pid}}", container)
	if err != nil {
		return 0, false
	}
	// On another machine the number belongs to another program.
	commandLine, _ := os.ReadFile("/proc/" + pid + "/cmdline")
	if strings.HasPrefix(string(commandLine), "/"+binaryPath) {
		content, _ := os.ReadFile("/proc/" + pid + "/status")
		status = string(content)
	} else {
		status, _ = e.output(ctx, "exec", container, "cat", "/proc/1/status")
	}
	return parseResident(status)
}

var residentLine = regexp.MustCompile(`(?m)^Rss(?:Anon|File):\s*(\d+) kB$`)

// parseResident sums two lines of /proc/PID/status.
func parseResident(status string) (int64, bool) {
	matches := residentLine.FindAllStringSubmatch(status, -1)
	var sum int64
	for _, match := range matches {
		kilobytes, err := strconv.ParseInt(match[1], 10, 64)
		if err != nil {
			return 0, false
		}
		sum += kilobytes << 10
	}
	return sum, len(matches) == 2
}

// responseKeys returns the keys of the JSON that both endpoints answer with.
func responseKeys(ctx context.Context, address string) ([]string, error) {
	var keys []string
	for _, path := range []string{"/", "/health"} {
		body, err := get(ctx, "http://"+address+path)
		if err != nil {
			return nil, err
		}
		var value any
		if err := json.Unmarshal(body, &value); err != nil {
			return nil, fmt.Errorf("GET %s: %w", path, err)
		}
		keys = appendKeys(keys, path, value)
	}
	sort.Strings(keys)
	return slices.Compact(keys), nil
}

// appendKeys adds each key with the path to it, such as "/ service.name".
func appendKeys(keys []string, prefix string, value any) []string {
	switch value := value.(type) {
	case map[string]any:
		for name, inner := range value {
			keys = append(keys, prefix+" "+name)
			keys = appendKeys(keys, prefix+" "+name, inner)
		}
	case []any:
		for _, inner := range value {
			keys = appendKeys(keys, prefix, inner)
		}
	}
	return keys
}

// measureZones tries every time zone of Go's own list in the multi-stage container. The health
// check reads TZ as the service does.
func measureZones(ctx context.Context, e *engine, r *report, list []byte) error {
	archive, err := zip.NewReader(bytes.NewReader(list), int64(len(list)))
	if err != nil {
		return fmt.Errorf("/%s of the single-stage image: %w", zonesPath, err)
	}
	var zones []string
	for _, f := range archive.File {
		if !f.FileInfo().IsDir() {
			zones = append(zones, f.Name)
		}
	}
	script := "while read -r zone; do TZ=$zone /" + binaryPath + ` -healthcheck 2>/dev/null || echo "$zone"; done`
	bad, err := e.outputOf(ctx, strings.NewReader(strings.Join(zones, "\n")+"\n"), "exec", "-i", e.name+"-"+multi, "sh", "-c", script)
	r.Zones, r.ZonesBad = len(zones), len(strings.Fields(bad))
	return err
}
