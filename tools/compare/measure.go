package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The kinds of images, which are also the ends of make's build targets.
const (
	single  = "single"
	multi   = "multi"
	scratch = "scratch"
)

var kinds = []string{single, multi, scratch}

// notAvailable stands for what is not measured, or has no meaning.
const notAvailable = "n/a"

// figures is what was measured of one image. A nil pointer stands for what has no meaning there or
// cannot be read.
type figures struct {
	Unpacked     int64 `json:"unpacked_bytes"`
	Base         int64 `json:"base_bytes"`
	Toolchain    int64 `json:"toolchain_bytes"`
	BuildCache   int64 `json:"build_cache_bytes"`
	Binary       int64 `json:"binary_bytes"`
	WithoutCache int64 `json:"without_build_cache_bytes"`
	Exported     int64 `json:"export_stream_bytes"`
	EngineSize   int64 `json:"engine_size_bytes"`

	SHA256   string `json:"binary_sha256"`
	Linkage  string `json:"binary_linkage"`
	Stripped int64  `json:"saved_by_stripping_bytes"`

	Packages      *int     `json:"apk_packages_count"`
	Executables   int      `json:"executable_files_count"`
	SetID         int      `json:"setuid_or_setgid_files_count"`
	Shells        []string `json:"shells"`
	Tools         []string `json:"build_tools"`
	Managers      []string `json:"package_managers"`
	Certificates  int      `json:"ca_certificates_count"`
	User          string   `json:"user"`
	UID           int      `json:"uid"`
	WritableCount int      `json:"writable_folders_count"`
	Writable      []string `json:"-"`

	Download       int64   `json:"download_bytes"`
	DownloadTime   float64 `json:"download_at_100_mbit_seconds"`
	ChangeDownload int64   `json:"download_after_change_bytes"`

	Start    float64  `json:"start_seconds"`
	Memory   int64    `json:"memory_bytes"`
	Resident *int64   `json:"resident_bytes"`
	Keys     []string `json:"response_keys"` // of both endpoints

	BuildCold   float64 `json:"build_cold_seconds"`
	BuildChange float64 `json:"build_after_change_seconds"`

	Layers []layer `json:"layers"`
}

// report is everything that is measured, and what is claimed about it.
type report struct {
	Date      string              `json:"date"`
	Engine    string              `json:"engine"`
	CPUs      int                 `json:"cpu_count"`
	Processor string              `json:"processor"`
	Version   string              `json:"version"`
	Zones     int                 `json:"time_zones_count"`
	ZonesBad  int                 `json:"time_zones_failed_count"`
	Images    map[string]*figures `json:"images"`
	Claims    []claim             `json:"claims"`
}

// The edits of a copy of the project that a measurement needs.
var (
	changedLine = regexp.MustCompile(`(serviceDescription\s*=\s*)"[^"]*"`)
	cacheMount  = regexp.MustCompile(`--mount=type=cache,\S*\s*`)
	stripFlags  = regexp.MustCompile(`-s -w `)
)

// measure builds the images, takes every measurement, and removes what it made for that.
func measure(ctx context.Context, o *options, progress io.Writer) (*report, error) {
	e, err := newEngine(o, progress)
	if err != nil {
		return nil, err
	}
	defer e.cleanup()
	if _, err := e.output(ctx, "info"); err != nil {
		return nil, fmt.Errorf("no container engine answers (DOCKER names another, such as podman): %w", err)
	}
	if _, err := os.Stat("Dockerfile.single"); err != nil {
		return nil, fmt.Errorf("start it in the project's folder: %w", err)
	}

	r := &report{Images: map[string]*figures{}}
	ids := map[string]string{}
	for _, kind := range kinds {
		e.step("building the image: %s", kind)
		if err := e.build(ctx, ".", "build-"+kind, strings.ToUpper(kind)+"_IMAGE="+o.images[kind]); err != nil {
			return nil, err
		}
		// By its ID, another build of the same name changes nothing here.
		if ids[kind], err = e.output(ctx, "image", "inspect", "-f", "{{.Id}}", o.images[kind]+":latest"); err != nil {
			return nil, err
		}
		r.Images[kind] = &figures{}
	}
	configs, err := measureChange(ctx, e, r, ids)
	if err != nil {
		return nil, err
	}
	systems := map[string]*fileSystem{}
	for _, kind := range kinds {
		e.step("reading its files: %s", kind)
		if systems[kind], err = exportImage(ctx, e, ids[kind]); err != nil {
			return nil, err
		}
		if err := measureFiles(r.Images[kind], systems[kind], configs[kind].Config.User); err != nil {
			return nil, fmt.Errorf("%s: %w", o.images[kind], err)
		}
		size, err := e.output(ctx, "image", "inspect", "-f", "{{.Size}}", ids[kind])
		if err != nil {
			return nil, err
		}
		if r.Images[kind].EngineSize, err = strconv.ParseInt(size, 10, 64); err != nil {
			return nil, err
		}
	}
	if err := measureStripped(ctx, e, r); err != nil {
		return nil, err
	}
	if err := measureStarts(ctx, e, r, ids); err != nil {
		return nil, err
	}
	e.step("trying every time zone")
	if err := measureZones(ctx, e, r, systems[single].contents[zonesPath]); err != nil {
		return nil, err
	}
	if err := measureColdBuilds(ctx, e, r); err != nil {
		return nil, err
	}
	if err := describe(ctx, e, r, systems[multi], configs[multi]); err != nil {
		return nil, err
	}
	r.Claims = claims(r)
	return r, nil
}

// measureChange measures the layers of each image, builds a copy of the project twice with another
// value in one line, and finds out how much of the second build a machine has to download that has
// the first.
func measureChange(ctx context.Context, e *engine, r *report, ids map[string]string) (map[string]*imageConfig, error) {
	folder, err := e.copyProject(".", "changed")
	if err != nil {
		return nil, err
	}
	change := func(value string) error {
		return edit(filepath.Join(folder, "handlers.go"), changedLine, `${1}"`+e.name+" "+value+`"`)
	}
	configs := map[string]*imageConfig{}
	measured := map[string]layer{}
	for _, kind := range kinds {
		f := r.Images[kind]
		e.step("compressing its layers: %s", kind)
		if configs[kind], f.Layers, err = saveImage(ctx, e, ids[kind], measured); err != nil {
			return nil, err
		}
		for _, l := range f.Layers {
			f.Download += l.Compressed
		}
		f.DownloadTime = float64(f.Download) * 8 / 100e6

		// Both builds are new, because the image itself may come from an older state of the cache,
		// in which other steps were made at another time.
		e.step("building before and after a change of one line: %s", kind)
		if err := change("before"); err != nil {
			return nil, err
		}
		image, _, err := e.buildCopy(ctx, folder, kind)
		if err != nil {
			return nil, err
		}
		before, err := e.output(ctx, "image", "inspect", "-f", "{{range .RootFS.Layers}}{{.}} {{end}}", image)
		if err != nil {
			return nil, err
		}
		e.removeImages(ctx) // otherwise the second build leaves it behind without a name
		if err := change("after"); err != nil {
			return nil, err
		}
		image, duration, err := e.buildCopy(ctx, folder, kind)
		if err != nil {
			return nil, err
		}
		f.BuildChange = duration.Seconds()
		_, after, err := saveImage(ctx, e, image, measured)
		if err != nil {
			return nil, err
		}
		e.removeImages(ctx)
		if f.ChangeDownload, err = markShared(f.Layers, strings.Fields(before), after); err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
	}
	return configs, nil
}

// markShared marks the layers that a change leaves as they are: those whose diff id is the same
// before and after. It returns the compressed bytes of the layers that the change makes new.
func markShared(layers []layer, before []string, after []layer) (int64, error) {
	if len(before) != len(layers) || len(after) != len(layers) {
		return 0, fmt.Errorf("%d layers, but %d before the change and %d after it", len(layers), len(before), len(after))
	}
	var download int64
	for i := range layers {
		layers[i].Shared = slices.ContainsFunc(after, func(l layer) bool { return l.DiffID == before[i] })
		if !slices.Contains(before, after[i].DiffID) {
			download += after[i].Compressed
		}
	}
	return download, nil
}

// saveImage reads an image's configuration and layers.
func saveImage(ctx context.Context, e *engine, image string, measured map[string]layer) (*imageConfig, []layer, error) {
	path := filepath.Join(e.folder, "image.tar")
	defer os.Remove(path)
	if _, err := e.output(ctx, "save", "-o", path, image); err != nil {
		return nil, nil, err
	}
	archive, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer archive.Close()
	// Compressing takes a while; an interruption ends it, because a closed file cannot be read.
	stop := context.AfterFunc(ctx, func() { archive.Close() })
	defer stop()
	info, err := archive.Stat()
	if err != nil {
		return nil, nil, err
	}
	return readImage(archive, info.Size(), measured)
}

// exportImage reads an image's files, by a container that is never started.
func exportImage(ctx context.Context, e *engine, image string) (*fileSystem, error) {
	container := e.name + "-export"
	if err := e.create(ctx, container, "create", "--name", container, image); err != nil {
		return nil, err
	}
	var system *fileSystem
	err := e.read(ctx, func(r io.Reader) (err error) {
		system, err = readFileSystem(r)
		return err
	}, "export", container)
	if err != nil {
		return nil, err
	}
	if system.contents[binaryPath] == nil {
		return nil, fmt.Errorf("image %s has no file /%s", image, binaryPath)
	}
	return system, e.removeContainer(ctx, container)
}

// measureStripped builds without -s -w, to see what these flags save.
func measureStripped(ctx context.Context, e *engine, r *report) error {
	e.step("building without -s -w")
	folder, err := e.copyProject(".", "unstripped")
	if err != nil {
		return err
	}
	if err := edit(filepath.Join(folder, "Dockerfile"), stripFlags, ""); err != nil {
		return err
	}
	image, _, err := e.buildCopy(ctx, folder, multi)
	if err != nil {
		return err
	}
	system, err := exportImage(ctx, e, image)
	if err != nil {
		return err
	}
	for _, f := range r.Images {
		f.Stripped = system.size(binaryPath) - f.Binary
	}
	e.removeImages(ctx)
	return nil
}

// measureColdBuilds builds with every cache left out. --no-cache does not empty a cache mount, so
// the Dockerfile goes without it.
func measureColdBuilds(ctx context.Context, e *engine, r *report) error {
	folder, err := e.copyProject(".", "cold")
	if err != nil {
		return err
	}
	if err := edit(filepath.Join(folder, "Dockerfile"), cacheMount, ""); err != nil {
		return err
	}
	for _, kind := range kinds {
		e.step("building with nothing cached: %s", kind)
		_, duration, err := e.buildCopy(ctx, folder, kind, "BUILD_FLAGS=--no-cache")
		if err != nil {
			return err
		}
		r.Images[kind].BuildCold = duration.Seconds()
	}
	e.removeImages(ctx)
	return nil
}

// describe says what was measured, when and where.
func describe(ctx context.Context, e *engine, r *report, system *fileSystem, config *imageConfig) error {
	version, err := e.output(ctx, "version", "--format", "{{.Server.Version}}")
	if err != nil {
		version, err = e.output(ctx, "--version") // podman may have no server
	}
	if err != nil {
		return err
	}
	info, err := buildinfo.Read(bytes.NewReader(system.contents[binaryPath]))
	if err != nil {
		return err
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	labels := config.Config.Labels
	revision := labels["org.opencontainers.image.revision"]
	r.Version = fmt.Sprintf("devops-info-service %s (%.12s) %s %s/%s", labels["org.opencontainers.image.version"],
		revision, info.GoVersion, settings["GOOS"], settings["GOARCH"])
	r.Date = time.Now().UTC().Format(time.DateOnly)
	r.Engine = filepath.Base(e.docker) + " " + version
	r.CPUs = runtime.NumCPU()
	r.Processor = runtime.GOARCH
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if match := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(cpuinfo); match != nil {
		r.Processor = string(match[1])
	}
	return nil
}
