package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strings"
)

// Files of an image that are read and not only listed, as docker export names them.
const (
	binaryPath       = "usr/local/bin/devops-info-service"
	accountsPath     = "etc/passwd"
	packagesPath     = "lib/apk/db/installed"
	certificatesPath = "etc/ssl/certs/ca-certificates.crt"
	zonesPath        = "usr/local/go/lib/time/zoneinfo.zip"
)

// file is one entry of an image's file system.
type file struct {
	path string // without a slash in front
	mode fs.FileMode
	uid  int
	size int64 // 0 for what is no regular file
}

// fileSystem is what docker export says about an image.
type fileSystem struct {
	files    []file
	contents map[string][]byte // of the files named above
	exported int64             // bytes of the whole archive
}

// The engine makes these at every start.
var madeByEngine = regexp.MustCompile(`^(\.dockerenv|dev|proc|sys)(/|$)`)

// readFileSystem reads an archive of docker export.
func readFileSystem(r io.Reader) (*fileSystem, error) {
	counted := &countingWriter{}
	r = io.TeeReader(r, counted)
	system := &fileSystem{contents: map[string][]byte{}}
	archive := tar.NewReader(r)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("docker export: %w", err)
		}
		name := strings.TrimPrefix(path.Clean("/"+header.Name), "/")
		if name == "" || madeByEngine.MatchString(name) {
			continue
		}
		entry := file{path: name, mode: header.FileInfo().Mode(), uid: header.Uid}
		if header.Typeflag == tar.TypeReg {
			entry.size = header.Size
		} else if entry.mode.IsRegular() { // a hard link, which is counted where its content is
			entry.mode |= fs.ModeIrregular
		}
		system.files = append(system.files, entry)
		switch name {
		case binaryPath, accountsPath, packagesPath, certificatesPath, zonesPath:
			content, err := io.ReadAll(archive)
			if err != nil {
				return nil, fmt.Errorf("docker export: %s: %w", name, err)
			}
			system.contents[name] = content
		}
	}
	// The zeros that follow the archive's end are part of what docker export sends.
	_, err := io.Copy(io.Discard, r)
	system.exported = counted.bytes
	return system, err
}

// size sums the files below a folder, or is the size of one file.
func (s *fileSystem) size(under string) int64 {
	var sum int64
	for _, f := range s.files {
		if under == "" || f.path == under || strings.HasPrefix(f.path, under+"/") {
			sum += f.size
		}
	}
	return sum
}

// layer is one layer of an image.
type layer struct {
	DiffID       string `json:"diff_id"`    // the digest of the layer's uncompressed archive
	CreatedBy    string `json:"created_by"` // the build's instruction; "n/a" where the image does not say
	Uncompressed int64  `json:"uncompressed_bytes"`
	Compressed   int64  `json:"compressed_bytes"`
	Shared       bool   `json:"shared_after_change"` // the image has it too after a change of one line
}

// imageConfig is what is read of an image's configuration.
type imageConfig struct {
	Config struct {
		User   string
		Labels map[string]string
	} `json:"config"`
	History []struct {
		CreatedBy  string `json:"created_by"`
		Comment    string `json:"comment"`
		EmptyLayer bool   `json:"empty_layer"`
	} `json:"history"`
	RootFS struct {
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// readImage reads an archive of docker save. Its manifest.json names the layers in the layout of
// the Open Container Initiative (Docker 25 and newer) and in the layout before it.
// measured has the layers that are measured already, by their diff id; more are added to it.
func readImage(archive io.ReaderAt, size int64, measured map[string]layer) (*imageConfig, []layer, error) {
	entries, err := archiveEntries(archive, size)
	if err != nil {
		return nil, nil, err
	}
	var manifest []struct {
		Config string
		Layers []string
	}
	if err := decodeEntry(entries, "manifest.json", &manifest); err != nil {
		return nil, nil, err
	}
	if len(manifest) != 1 {
		return nil, nil, fmt.Errorf("docker save: %d images, not 1", len(manifest))
	}
	config := &imageConfig{}
	if err := decodeEntry(entries, manifest[0].Config, config); err != nil {
		return nil, nil, err
	}
	diffIDs := config.RootFS.DiffIDs
	if len(diffIDs) != len(manifest[0].Layers) {
		return nil, nil, fmt.Errorf("docker save: %d diff ids of %d layers", len(diffIDs), len(manifest[0].Layers))
	}
	instructions := config.instructions()
	var layers []layer
	for i, diffID := range diffIDs {
		l, known := measured[diffID]
		if !known {
			entry := entries[manifest[0].Layers[i]]
			if entry == nil {
				return nil, nil, fmt.Errorf("docker save: layer %s is missing", manifest[0].Layers[i])
			}
			if l, err = measureLayer(entry, diffID); err != nil {
				return nil, nil, err
			}
			measured[diffID] = l
		}
		l.CreatedBy = instructions[i]
		layers = append(layers, l)
	}
	return config, layers, nil
}

// archiveEntries finds the files of an archive. A link, which docker save writes for a layer that
// occurs twice, is the file it names.
func archiveEntries(archive io.ReaderAt, size int64) (map[string]*io.SectionReader, error) {
	entries := map[string]*io.SectionReader{}
	links := map[string]string{}
	whole := io.NewSectionReader(archive, 0, size)
	reader := tar.NewReader(whole)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("docker save: %w", err)
		}
		switch header.Typeflag {
		case tar.TypeReg:
			// The tar reader has read exactly up to here.
			start, err := whole.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			entries[path.Clean(header.Name)] = io.NewSectionReader(archive, start, header.Size)
		case tar.TypeSymlink:
			links[path.Clean(header.Name)] = path.Join(path.Dir(header.Name), header.Linkname)
		case tar.TypeLink:
			links[path.Clean(header.Name)] = path.Clean(header.Linkname)
		}
	}
	for name, target := range links {
		if entries[target] != nil {
			entries[name] = entries[target]
		}
	}
	return entries, nil
}

func decodeEntry(entries map[string]*io.SectionReader, name string, into any) error {
	entry := entries[name]
	if entry == nil {
		return fmt.Errorf("docker save: %q is missing", name)
	}
	if err := json.NewDecoder(entry).Decode(into); err != nil {
		return fmt.Errorf("docker save: %s: %w", name, err)
	}
	return nil
}

// instructions says for each layer which instruction made it. The history has an entry for each
// instruction, and most of them make no layer.
func (c *imageConfig) instructions() []string {
	var made []string
	for _, h := range c.History {
		if !h.EmptyLayer {
			instruction := h.CreatedBy
			if instruction == "" {
				instruction = h.Comment // docker import leaves a comment only
			}
			made = append(made, instruction)
		}
	}
	complete := len(made) == len(c.RootFS.DiffIDs)
	instructions := make([]string, len(c.RootFS.DiffIDs))
	for i := range instructions {
		instructions[i] = notAvailable
		if complete && made[i] != "" {
			instructions[i] = made[i]
		}
	}
	return instructions
}

// measureLayer measures a layer, which docker save writes as it is stored: as an archive, or
// compressed by gzip. An archive is compressed here as docker push does it, by gzip with its
// default level.
func measureLayer(entry *io.SectionReader, diffID string) (layer, error) {
	l := layer{DiffID: diffID}
	start := make([]byte, 2)
	if _, err := entry.ReadAt(start, 0); err != nil {
		return l, fmt.Errorf("layer %s: %w", diffID, err)
	}
	hash := sha256.New()
	compressed := &countingWriter{}
	var content io.Reader = io.NewSectionReader(entry, 0, entry.Size())
	writer := io.Writer(hash)
	var compressor *gzip.Writer
	if bytes.Equal(start, []byte{0x1f, 0x8b}) { // gzip, RFC 1952
		compressed.bytes = entry.Size()
		unpacked, err := gzip.NewReader(content)
		if err != nil {
			return l, fmt.Errorf("layer %s: %w", diffID, err)
		}
		content = unpacked
	} else {
		compressor = gzip.NewWriter(compressed)
		writer = io.MultiWriter(hash, compressor)
	}
	var err error
	if l.Uncompressed, err = io.Copy(writer, content); err != nil {
		return l, fmt.Errorf("layer %s: %w", diffID, err)
	}
	if compressor != nil {
		if err := compressor.Close(); err != nil {
			return l, err
		}
	}
	l.Compressed = compressed.bytes
	if got := fmt.Sprintf("sha256:%x", hash.Sum(nil)); got != diffID {
		return l, fmt.Errorf("layer %s: its content is %s; it is damaged, or compressed by something other than gzip", diffID, got)
	}
	return l, nil
}

// countingWriter counts what is written to it.
type countingWriter struct{ bytes int64 }

func (w *countingWriter) Write(p []byte) (int, error) {
	w.bytes += int64(len(p))
	return len(p), nil
}
