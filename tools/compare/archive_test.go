package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// entry is one file of an archive that a test makes.
type entry struct {
	name    string
	content string
	mode    int64
	uid     int
	kind    byte   // a regular file if it is not set
	link    string // the target of a link
}

func makeArchive(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, e := range entries {
		header := &tar.Header{Name: e.name, Mode: e.mode, Uid: e.uid, Size: int64(len(e.content)), Typeflag: e.kind, Linkname: e.link}
		if header.Typeflag == 0 {
			header.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

func TestReadFileSystem(t *testing.T) {
	archive := makeArchive(t,
		entry{name: ".dockerenv", content: "engine", mode: 0o755},
		entry{name: "dev/console", content: "engine"},
		entry{name: "devices", content: "12345"},
		entry{name: "usr/local/go/bin/go", content: "compiler", mode: 0o755},
		entry{name: "usr/local/gone", content: "12"},
		entry{name: "usr/bin/first", content: "123", mode: 0o4755},
		entry{name: "usr/bin/second", mode: 0o4755, kind: tar.TypeLink, link: "usr/bin/first"},
		entry{name: "bin/sh", mode: 0o777, kind: tar.TypeSymlink, link: "/bin/busybox"},
		entry{name: "etc/passwd", content: "root:x:0:0:root:/root:/bin/sh\n"},
	)
	s, err := readFileSystem(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, under string
		want        int64
	}{
		{"everything but the engine's own files", "", 5 + 8 + 2 + 3 + 30},
		{"a folder without its neighbour", "usr/local/go", 8},
		{"a file", "devices", 5},
		{"a hard link has no bytes of its own", "usr/bin/second", 0},
		{"a folder that does not exist", "root/.cache", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := s.size(test.under); got != test.want {
				t.Errorf("size(%q) = %d, want %d", test.under, got, test.want)
			}
		})
	}
	if want := int64(len(archive)); s.exported != want {
		t.Errorf("exported = %d, want %d", s.exported, want)
	}
	if got := string(s.contents[accountsPath]); !strings.HasPrefix(got, "root:x:0") {
		t.Errorf("content of etc/passwd = %q", got)
	}
	if got, want := commands(s, "sh", "go", "first", "second", "git"), []string{"first", "go", "second", "sh"}; !slices.Equal(got, want) {
		t.Errorf("commands = %q, want %q", got, want)
	}
	if _, err := readFileSystem(bytes.NewReader(archive[:515])); err == nil {
		t.Error("an archive that is cut off was read without an error")
	}
}

func digest(content []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(content)) }

func compress(t *testing.T, content []byte) []byte {
	t.Helper()
	var compressed bytes.Buffer
	w := gzip.NewWriter(&compressed)
	w.Write(content)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return compressed.Bytes()
}

func marshal(t *testing.T, value any) string {
	t.Helper()
	content, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

type object map[string]any

func TestReadImage(t *testing.T) {
	base := bytes.Repeat([]byte("base"), 1000)
	service := bytes.Repeat([]byte("service"), 100)
	config := func(instructions []object, layers ...[]byte) string {
		var diffIDs []string
		for _, l := range layers {
			diffIDs = append(diffIDs, digest(l))
		}
		return marshal(t, object{
			"config":  object{"User": "10001:10001"},
			"history": instructions,
			"rootfs":  object{"diff_ids": diffIDs},
		})
	}
	history := []object{
		{"comment": "Imported from -"},
		{"created_by": "ENV A=b", "empty_layer": true},
		{"created_by": "COPY /service / # buildkit"},
		{"created_by": "CMD [\"/service\"]", "empty_layer": true},
	}
	manifest := func(config string, layers ...string) string {
		return marshal(t, []object{{"Config": config, "RepoTags": []string{"a:b"}, "Layers": layers}})
	}
	named := []string{"Imported from -", "COPY /service / # buildkit"}

	for _, test := range []struct {
		name    string
		entries []entry
		want    []string // instructions
		err     string
	}{
		{"the layout before OCI", []entry{
			{name: "c.json", content: config(history, base, service)},
			{name: "1/layer.tar", content: string(base)},
			{name: "2/layer.tar", content: string(service)},
			{name: "manifest.json", content: manifest("c.json", "1/layer.tar", "2/layer.tar")},
		}, named, ""},
		{"the OCI layout with compressed layers", []entry{
			{name: "blobs/sha256/c", content: config(history, base, service)},
			{name: "blobs/sha256/1", content: string(compress(t, base))},
			{name: "blobs/sha256/2", content: string(compress(t, service))},
			{name: "index.json", content: "{}"},
			{name: "manifest.json", content: manifest("blobs/sha256/c", "blobs/sha256/1", "blobs/sha256/2")},
		}, named, ""},
		{"a layer that is a link to another file", []entry{
			{name: "c.json", content: config(history, base, service)},
			{name: "1/layer.tar", kind: tar.TypeSymlink, link: "../0/layer.tar"},
			{name: "0/layer.tar", content: string(base)},
			{name: "2/layer.tar", content: string(service)},
			{name: "manifest.json", content: manifest("c.json", "1/layer.tar", "2/layer.tar")},
		}, named, ""},
		{"a history that does not fit the layers", []entry{
			{name: "c.json", content: config(history[:1], base, service)},
			{name: "1", content: string(base)},
			{name: "2", content: string(service)},
			{name: "manifest.json", content: manifest("c.json", "1", "2")},
		}, []string{"n/a", "n/a"}, ""},
		{"a layer with other content than its diff id says", []entry{
			{name: "c.json", content: config(history, base, service)},
			{name: "1", content: string(base)},
			{name: "2", content: "damaged"},
			{name: "manifest.json", content: manifest("c.json", "1", "2")},
		}, nil, "it is damaged"},
		{"a missing layer", []entry{
			{name: "c.json", content: config(history, base, service)},
			{name: "1", content: string(base)},
			{name: "manifest.json", content: manifest("c.json", "1", "2")},
		}, nil, "layer 2 is missing"},
		{"more diff ids than layers", []entry{
			{name: "c.json", content: config(history, base, service)},
			{name: "manifest.json", content: manifest("c.json", "1")},
		}, nil, "2 diff ids of 1 layers"},
		{"no manifest", []entry{{name: "c.json", content: "{}"}}, nil, `"manifest.json" is missing`},
	} {
		t.Run(test.name, func(t *testing.T) {
			archive := makeArchive(t, test.entries...)
			image, layers, err := readImage(bytes.NewReader(archive), int64(len(archive)), map[string]layer{})
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("error %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if image.Config.User != "10001:10001" {
				t.Errorf("user %q, want 10001:10001", image.Config.User)
			}
			want := []layer{
				{digest(base), test.want[0], int64(len(base)), int64(len(compress(t, base))), false},
				{digest(service), test.want[1], int64(len(service)), int64(len(compress(t, service))), false},
			}
			if !slices.Equal(layers, want) {
				t.Errorf("layers\n%+v, want\n%+v", layers, want)
			}
		})
	}
}

func TestMarkShared(t *testing.T) {
	layers := []layer{{DiffID: "base"}, {DiffID: "older"}, {DiffID: "service"}}
	before := []string{"base", "accounts", "service 1"}
	after := []layer{{DiffID: "base", Compressed: 100}, {DiffID: "accounts", Compressed: 3}, {DiffID: "service 2", Compressed: 20}}
	got, err := markShared(layers, before, after)
	if err != nil || got != 20 {
		t.Errorf("second download = %d, %v, want 20", got, err)
	}
	if !layers[0].Shared || !layers[1].Shared || layers[2].Shared {
		t.Errorf("shared: %v, %v, %v, want true, true, false", layers[0].Shared, layers[1].Shared, layers[2].Shared)
	}
	if _, err := markShared(layers, before[:2], after); err == nil {
		t.Error("builds with another number of layers were compared")
	}
}
