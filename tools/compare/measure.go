package main

import (
	"archive/zip"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// measure builds the images, takes every measurement, and removes what it made for that.
func measure(ctx context.Context, getenv func(string) string, progress io.Writer) (*report, error) {
	folder, err := os.MkdirTemp("", "devops-compare-")
	if err != nil {
		return nil, err
	}
	e := &engine{ctx: ctx, docker: getenv("DOCKER"), make: getenv("MAKE"), folder: folder, name: filepath.Base(folder),
		layers: map[string]size{}, progress: progress}
	defer e.cleanup()
	r := &report{Date: time.Now().UTC().Format(time.DateOnly), CPUs: runtime.NumCPU(), Images: map[string]*figures{}}
	e.run("ps", "-q") // docker info does not say why nothing answers
	ids := map[string]string{}
	for _, kind := range kinds {
		e.step("building the image: %s", kind)
		f, name := &figures{}, getenv(strings.ToUpper(kind)+"_IMAGE")
		r.Images[kind] = f
		e.build(".", kind, name)
		// By its ID, another build of the same name changes nothing here.
		ids[kind] = e.run("image", "inspect", "-f", "{{.Id}}", name+":latest")
		f.EngineSize = e.parseSize(e.run("images", "--format", "{{.Size}}", name+":latest"))
		e.step("reading its layers and files: %s", kind)
		e.archive(func(a tarball.Opener) error { return f.readLayers(a, e.layers) }, "save", ids[kind])
		e.readFiles(f, kind, ids[kind])
		f.Ratio = ratio(r.Images[single].Unpacked) / ratio(f.Unpacked)
		f.Reduction = percent(100 - 100/f.Ratio)
	}
	e.measureStarts(r, ids)
	e.measureZones(r)
	r.Version = e.run("exec", e.container(multi), "/"+binaryPath, "-version")
	r.Engine = filepath.Base(e.docker) + " " + e.run("version", "--format", "{{.Server.Version}}")
	if e.err != nil {
		return nil, e.err
	}
	r.Claims = claims(r) // none is about a build
	e.measureBuilds(r)
	return r, e.err
}

const (
	starts         = 5 // of each image; their median counts
	readyTimeout   = 20 * time.Second
	requestTimeout = time.Second
	pollInterval   = 2 * time.Millisecond
)

func (e *engine) container(kind string) string { return e.name + "-" + kind }

// readFiles measures an image's files, by a container that is not started.
func (e *engine) readFiles(f *figures, kind, image string) {
	e.undo = append(e.undo, []string{"rm", "-f", e.container(kind)})
	e.create(e.container(kind), "create", image)
	e.archive(f.readFiles, "export", e.container(kind))
}

// measureStarts starts each image several times, in turns. The last containers keep running.
func (e *engine) measureStarts(r *report, ids map[string]string) {
	times, memories := map[string][]float64{}, map[string][]float64{}
	for i := 1; i <= starts; i++ {
		e.step("starting each image, %d of %d", i, starts)
		for _, kind := range kinds {
			e.run("rm", "-f", e.container(kind))
			begun := time.Now()
			e.create(e.container(kind), "run", "-d", "-p", "127.0.0.1::5002", ids[kind])
			// The second line is the same port for IPv6.
			address, _, _ := strings.Cut(e.run("port", e.container(kind), "5002/tcp"), "\n")
			for e.err == nil && !answers(address, "/health") {
				if time.Since(begun) > readyTimeout || e.ctx.Err() != nil {
					e.fail(fmt.Errorf("%s does not answer /health within %v", kind, readyTimeout))
				}
				time.Sleep(pollInterval)
			}
			times[kind] = append(times[kind], time.Since(begun).Seconds())
			r.Images[kind].Endpoints = slices.DeleteFunc(names{"/", "/health"}, func(path string) bool { return !answers(address, path) })
		}
		// One call for all three, because it takes docker two seconds.
		usage := e.run("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", e.container(single), e.container(multi), e.container(scratch))
		for _, line := range strings.Split(usage, "\n") {
			name, memory, _ := strings.Cut(line, " ")
			kind := strings.TrimPrefix(name, e.container(""))
			memories[kind] = append(memories[kind], float64(e.parseSize(memory)))
		}
	}
	for _, kind := range kinds {
		r.Images[kind].Start, r.Images[kind].Memory = seconds(median(times[kind])), size(median(memories[kind]))
	}
}

// median returns 0 where a failure left no values.
func median(values []float64) float64 {
	slices.Sort(values)
	return append(values, 0)[len(values)/2]
}

// answers reports whether a container answers a path with 200.
func answers(address, path string) bool {
	client := http.Client{Timeout: requestTimeout}
	response, err := client.Get("http://" + address + path)
	if err == nil {
		response.Body.Close()
	}
	return err == nil && response.StatusCode == http.StatusOK
}

// measureZones tries every time zone of Go's own list in each container that has a shell. The health
// check reads TZ as the service does.
func (e *engine) measureZones(r *report) {
	list := r.Images[single].zones
	archive, err := zip.NewReader(bytes.NewReader(list), int64(len(list)))
	if err != nil {
		e.fail(fmt.Errorf("/%s: %w", zonesPath, err))
		return
	}
	script := "for zone; do TZ=$zone /" + binaryPath + ` -healthcheck 2>/dev/null && echo "$zone"; done; true`
	command := []string{"sh", "-c", script, "sh"}
	for _, f := range archive.File {
		if !f.FileInfo().IsDir() {
			command = append(command, f.Name)
			r.Zones++
		}
	}
	for _, kind := range kinds {
		f := r.Images[kind]
		f.Zones = "n/a"
		if slices.Contains(f.Shells, "sh") {
			e.step("trying every time zone: %s", kind)
			working := e.run(append([]string{"exec", e.container(kind)}, command...)...)
			f.Zones = fmt.Sprintf("%d of %d", len(strings.Fields(working)), r.Zones)
		}
	}
}

// measureBuilds builds copies of the project, to see what the flags -s -w save, how long a build takes
// with nothing compiled before and after a change of one line, and how much of the second build a
// machine has to download that has the first.
func (e *engine) measureBuilds(r *report) {
	// This build comes first, because it fills the cache mount, which the engine may have emptied
	// though it still has the image's layers.
	e.step("building without -s -w")
	name, _ := e.buildEdited(multi, "unstripped", edit{"Dockerfile", "-s -w ", ""})
	unstripped := &figures{}
	e.readFiles(unstripped, "unstripped", name)
	noCacheMount := edit{"Dockerfile", "--mount=type=cache,target=/root/.cache/go-build", ""}
	// The text is new each time, so that no layer is cached but the base image's.
	line := func(text string) edit { return edit{"handlers.go", "DevOps course info service", e.name + " " + text} }
	for _, kind := range kinds {
		f := r.Images[kind]
		f.Stripped = unstripped.Binary - f.Binary
		e.step("building with nothing cached: %s", kind)
		name, f.BuildCold = e.buildEdited(kind, "cold", line(kind+" cold"), noCacheMount)
		before := e.run("image", "inspect", "-f", "{{.RootFS.Layers}}", name)
		e.step("building after a change of one line: %s", kind)
		name, f.BuildChange = e.buildEdited(kind, "changed", line(kind+" changed"))
		changed := &figures{}
		e.archive(func(a tarball.Opener) error { return changed.readLayers(a, e.layers) }, "save", name)
		for i, l := range changed.Layers {
			f.Layers[i].Shared = strings.Contains(before, l.DiffID)
			if !f.Layers[i].Shared {
				f.ChangeDownload += l.Compressed
			}
		}
	}
}

// parseSize reads the size at the start of what an engine prints, such as "1.5MiB / 2GiB" (docker)
// or "12.4 MB" (podman).
func (e *engine) parseSize(printed string) size {
	var number float64
	var unit string
	fmt.Sscanf(printed, "%f%s", &number, &unit)
	factor := map[string]float64{
		"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
	}[unit]
	if factor == 0 {
		e.fail(fmt.Errorf("%q does not begin with a size", printed))
	}
	return size(number * factor)
}
