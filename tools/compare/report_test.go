package main

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// goodReport is a report with every claim true.
func goodReport() *report {
	packages, resident, keys := 15, int64(4_900_000), []string{"/ service", "/health status"}
	image := func(base, toolchain, cache int64) *figures {
		return &figures{
			Unpacked: base + toolchain + cache + 4_980_000, Base: base, Toolchain: toolchain, BuildCache: cache, Binary: 4_980_000,
			WithoutCache: base + toolchain + 4_980_000, SHA256: "41ca7249a22012345", Linkage: "static", Stripped: 2_140_000,
			Packages: &packages, Resident: &resident, Certificates: 147, User: "mariaappgo", UID: 10001,
			Download: 5_000_000, ChangeDownload: 2_000_000, Memory: 1_500_000, Keys: keys,
			Layers: []layer{{"sha256:1", "RUN |1 A=b /bin/sh -c a | b # buildkit", 2_000_000, 1_000_000, true}},
		}
	}
	r := &report{Date: "2026-11-24", Engine: "docker 1", CPUs: 2, Processor: "X", Version: "1.0.0", Zones: 597,
		Images: map[string]*figures{
			single:  image(7_430_000, 197_970_000, 63_400_000),
			multi:   image(7_390_000, 0, 0),
			scratch: image(81, 0, 0),
		}}
	r.Images[single].Tools = []string{"go", "gofmt"}
	r.Images[scratch].Packages, r.Images[scratch].Resident = nil, nil
	r.Claims = claims(r)
	return r
}

func TestClaims(t *testing.T) {
	r := goodReport()
	for _, c := range r.Claims {
		if !c.Holds {
			t.Errorf("%s: %s: false in a good report, measured %s", c.Image, c.Label, c.Measured)
		}
	}
	for _, test := range []struct {
		name, image, label string
		change             func(r *report, f *figures)
	}{
		{"multi too large", multi, "image <=", func(r *report, f *figures) { f.Unpacked = 12_500_001 }},
		{"not small enough in per cent", multi, "% smaller", func(r *report, f *figures) { r.Images[single].Unpacked = 190_000_000 }},
		{"ratio too small", multi, ": 1", func(r *report, f *figures) { r.Images[single].Unpacked = 190_000_000 }},
		{"binary too large", multi, "binary <=", func(r *report, f *figures) { f.Binary = 5_000_001 }},
		{"multi is dynamic", multi, "static", func(r *report, f *figures) { f.Linkage = "dynamic" }},
		{"multi has another binary", multi, "same binary", func(r *report, f *figures) { f.SHA256 = "b" }},
		{"multi is root", multi, "mariaappgo", func(r *report, f *figures) { f.UID = 0 }},
		{"multi is another user", multi, "mariaappgo", func(r *report, f *figures) { f.User = "nobody" }},
		{"multi has a tool", multi, "toolchain", func(r *report, f *figures) { f.Tools = []string{"git"} }},
		{"too few certificates", multi, "CA bundle", func(r *report, f *figures) { f.Certificates = 99 }},
		{"a time zone fails", multi, "time zone", func(r *report, f *figures) { r.ZonesBad = 1 }},
		{"no time zones were found", multi, "time zone", func(r *report, f *figures) { r.Zones = 0 }},
		{"too much memory", multi, "memory", func(r *report, f *figures) { f.Memory = 3_200_001 }},
		{"no memory was measured", multi, "memory", func(r *report, f *figures) { f.Memory = 0 }},
		{"multi does not answer", multi, "endpoints", func(r *report, f *figures) { f.Keys = nil }},
		{"scratch too large", scratch, "image <=", func(r *report, f *figures) { f.Unpacked = 5_100_001 }},
		{"scratch is dynamic", scratch, "static", func(r *report, f *figures) { f.Linkage = "dynamic" }},
		{"scratch has another binary", scratch, "same binary", func(r *report, f *figures) { f.SHA256 = "b" }},
		{"scratch is root", scratch, "uid", func(r *report, f *figures) { f.UID = 0 }},
		{"scratch answers otherwise", scratch, "endpoints", func(r *report, f *figures) { f.Keys = []string{"/ other"} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := goodReport()
			test.change(r, r.Images[test.image])
			r.Claims = claims(r)
			for _, c := range r.Claims {
				if c.Image == test.image && strings.Contains(c.Label, test.label) && c.Holds {
					t.Errorf("%s: %s: still true, measured %s", c.Image, c.Label, c.Measured)
				}
			}
			if r.holds() {
				t.Error("the report holds")
			}
		})
	}
}

func TestAgainst(t *testing.T) {
	for _, test := range []struct {
		name string
		a, b cell
		want string
	}{
		{"ratio", bytesCell(22_000_000), bytesCell(1_000_000), "22.0 : 1"},
		{"bytes to nothing", bytesCell(198_000_000), bytesCell(0), "-198.00 MB"},
		{"bytes to nearly nothing", bytesCell(7_430_000), bytesCell(81), "-7.43 MB"},
		{"nothing to nothing", bytesCell(0), bytesCell(0), "same"},
		{"counts", countCell(43), countCell(24), "-19"},
		{"equal counts", countCell(15), countCell(15), "same"},
		{"equal text", textCell("static"), textCell("static"), "same"},
		{"other text", textCell("go"), textCell("none"), ""},
		{"not available", countCell(15), missingCell, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.a.against(test.b); got != test.want {
				t.Errorf("against = %q, want %q", got, test.want)
			}
		})
	}
}

func TestFormats(t *testing.T) {
	for name, want := range map[string][]string{
		"text":     {"unpacked: files in docker export", "273.78 MB", "22.1 : 1", "n/a", "multi: binary is static", "pass", "RUN a | b"},
		"markdown": {"| &emsp;Go toolchain | 197.97 MB |", `RUN a \| b`, "image &lt;= 12.5 MB", "- The single-stage image is 72 % toolchain and 23 % build cache."},
		"json":     {`"unpacked_bytes": 273780000`, `"apk_packages_count": null`, `"holds": true`},
		"svg":      {"273.78 MB", "22.1 : 1", "55.0 : 1", "prefers-color-scheme: dark"},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			if err := formats[name](&b, goodReport()); err != nil {
				t.Fatal(err)
			}
			for _, part := range want {
				if !strings.Contains(b.String(), part) {
					t.Errorf("%q is missing in\n%s", part, b.String())
				}
			}
		})
	}
	t.Run("json is one value", func(t *testing.T) {
		var b strings.Builder
		writeJSON(&b, goodReport())
		var r report
		if err := json.Unmarshal([]byte(b.String()), &r); err != nil || len(r.Images) != 3 {
			t.Errorf("%d images, %v", len(r.Images), err)
		}
	})
	t.Run("svg is well formed", func(t *testing.T) {
		var b strings.Builder
		writeSVG(&b, goodReport())
		decoder := xml.NewDecoder(strings.NewReader(b.String()))
		for {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestShortInstruction(t *testing.T) {
	for _, test := range []struct{ name, createdBy, want string }{
		{"BuildKit's RUN", "RUN |2 VERSION=1 REVISION= /bin/sh -c CGO_ENABLED=0     go build # buildkit", "RUN CGO_ENABLED=0 go build"},
		{"the builder before BuildKit", "/bin/sh -c #(nop) ADD file:1 in / ", "ADD file:1 in /"},
		{"COPY", "COPY . . # buildkit", "COPY . ."},
		{"a long line", "COPY " + strings.Repeat("é", 80), "COPY " + strings.Repeat("é", 54) + "…"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := shortInstruction(test.createdBy); got != test.want {
				t.Errorf("shortInstruction = %q, want %q", got, test.want)
			}
		})
	}
}

func TestReplaceMarked(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"both marks", "a\n" + beginMark + "\nold\n" + endMark + "\nz\n", "a\n" + beginMark + "\n\nnew\n\n" + endMark + "\nz\n"},
		{"no mark", "a\n", ""},
		{"no end", beginMark + "\nold\n", ""},
		{"the end first", endMark + "\n" + beginMark + "\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := replaceMarked(test.text, "\nnew\n")
			if got != test.want || (err == nil) != (test.want != "") {
				t.Errorf("replaceMarked = %q, %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestNotMeasured(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
		env  map[string]string
		want string
	}{
		{"a bad format", nil, map[string]string{"FORMAT": "yaml"}, `compare: FORMAT "yaml": must be text, markdown, json or svg`},
		{"an argument", []string{"all"}, nil, `compare: argument "all": none is accepted`},
		{"no engine", nil, map[string]string{"DOCKER": "false"}, "compare: no container engine answers (DOCKER names another, such as podman): false info: exit status 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stdout, stderr strings.Builder
			code := run(context.Background(), test.args, func(name string) string { return test.env[name] }, &stdout, &stderr)
			if got := strings.TrimSpace(stderr.String()); code != exitNotMeasured || got != test.want || stdout.Len() > 0 {
				t.Errorf("exit code %d, %q and %q, want %d and %q", code, stdout.String(), got, exitNotMeasured, test.want)
			}
		})
	}
}

func TestEdit(t *testing.T) {
	for _, test := range []struct {
		name, content, replacement, want string
		pattern                          *regexp.Regexp
	}{
		{"the changed line", "\tserviceDescription = \"DevOps\"\n", `${1}"new"`, "\tserviceDescription = \"new\"\n", changedLine},
		{"no such line", "\tserviceName = \"DevOps\"\n", `${1}"new"`, "", changedLine},
		{"the cache mount", "RUN --mount=type=cache,target=/root/.cache \\\n    go build\n", "", "RUN \\\n    go build\n", cacheMount},
		{"the flags", `-ldflags="-s -w -X main.a=b"`, "", `-ldflags="-X main.a=b"`, stripFlags},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(path, []byte(test.content), 0o600); err != nil {
				t.Fatal(err)
			}
			err := edit(path, test.pattern, test.replacement)
			if test.want == "" {
				if !errors.Is(err, errNotFound) {
					t.Errorf("error %v, want %v", err, errNotFound)
				}
				return
			}
			if got, _ := os.ReadFile(path); err != nil || string(got) != test.want {
				t.Errorf("%q, %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestCopyProject(t *testing.T) {
	project := t.TempDir()
	for _, name := range []string{"go.mod", ".git/config", "bin/service", "internal/bin/a.go"} {
		path := filepath.Join(project, name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e := &engine{folder: t.TempDir()}
	target, err := e.copyProject(project, "copy")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"go.mod": true, "internal/bin/a.go": true, ".git": false, "bin": false} {
		if _, err := os.Stat(filepath.Join(target, name)); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", name, err == nil, want)
		}
	}
}

// fakeEngine is an engine whose command writes its arguments to a file.
func fakeEngine(t *testing.T) (*engine, func() string) {
	t.Helper()
	folder := t.TempDir()
	log := filepath.Join(folder, "log")
	docker := filepath.Join(folder, "docker")
	script := "#!/bin/sh\necho \"$*\" >>'" + log + "'\ncase $1 in hang) sleep 60 ;; esac\n"
	if err := os.WriteFile(docker, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	e, err := newEngine(&options{docker: docker, make: docker}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return e, func() string {
		content, _ := os.ReadFile(log)
		return strings.ReplaceAll(string(content), e.name, "NAME")
	}
}

func TestCleanup(t *testing.T) {
	e, log := fakeEngine(t)
	ctx := context.Background()
	if err := e.create(ctx, e.name+"-a", "run", e.name+"-a"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.buildCopy(ctx, "folder", multi); err != nil {
		t.Fatal(err)
	}
	e.cleanup()
	want := "run NAME-a\n" +
		"-C folder build-multi DOCKER=" + e.docker + " MULTI_IMAGE=NAME-multi VERSION=measured REVISION=\n" +
		"rm -f NAME-a\nrmi -f NAME-multi:latest\nrmi -f NAME-multi:measured\n"
	if got := log(); got != want {
		t.Errorf("commands\n%swant\n%s", got, want)
	}
	if _, err := os.Stat(e.folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

func TestInterrupt(t *testing.T) {
	e, log := fakeEngine(t)
	defer e.cleanup()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if _, err := e.output(ctx, "hang"); err == nil {
		t.Error("an interrupted command returned no error")
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the command and its child took %v to stop", took)
	}
	if err := e.create(ctx, "late", "run", "late"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("create after the interruption: %v, want %v", err, context.DeadlineExceeded)
	}
	if got := log(); strings.Contains(got, "late") {
		t.Errorf("a container was made after the interruption: %s", got)
	}
}
