// Dist builds the service for every platform of a release and packs each binary, with README.md and LICENSE if
// there is one, into an archive in dist/, beside their SHA256SUMS. Run it with make dist: deploy/release checks
// and sets VERSION, REVISION and SOURCE_DATE_EPOCH. The same commit and Go give the same bytes, because nothing
// in an archive depends on the machine, the folder or the time.
package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	program = "devops-info-service"
	folder  = "dist"

	// allPlatforms are those of the image, and what else people have at home. PLATFORMS narrows it.
	allPlatforms = "linux/amd64,linux/arm64,linux/arm/v7,linux/arm/v6,linux/386,linux/ppc64le,linux/s390x," +
		"darwin/amd64,darwin/arm64,windows/amd64,windows/arm64,freebsd/amd64"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Getenv); err != nil {
		os.RemoveAll(folder) // nobody shall take a part for the whole
		fmt.Fprintln(os.Stderr, "dist:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, getenv func(string) string) error {
	seconds, err := strconv.ParseInt(getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	platforms := getenv("PLATFORMS")
	if platforms == "" {
		platforms = allPlatforms
	}
	// What an earlier run has left is of another version or incomplete.
	if err := os.RemoveAll(folder); err != nil {
		return err
	}
	if err := os.Mkdir(folder, 0o777); err != nil {
		return err
	}
	var sums bytes.Buffer
	for _, platform := range strings.Split(platforms, ",") {
		name := program + "_" + getenv("VERSION") + "_" + strings.ReplaceAll(platform, "/", "_")
		executable, archive, pack := program, name+".tar.gz", packTar
		if strings.HasPrefix(platform, "windows/") {
			executable, archive, pack = program+".exe", name+".zip", packZip
		}
		binary, err := build(ctx, getenv, platform)
		if err != nil {
			return fmt.Errorf("%s: %w", platform, err)
		}
		files := []file{{name + "/" + executable, 0o755, binary}}
		for _, document := range []string{"README.md", "LICENSE"} {
			content, err := os.ReadFile(document)
			if err == nil {
				files = append(files, file{name + "/" + document, 0o644, content})
			} else if document != "LICENSE" || !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		var packed bytes.Buffer
		if err := pack(&packed, files, time.Unix(seconds, 0).UTC()); err != nil {
			return fmt.Errorf("%s: %w", archive, err)
		}
		if err := os.WriteFile(filepath.Join(folder, archive), packed.Bytes(), 0o666); err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(packed.Bytes()), archive)
		fmt.Printf("%s/%s\n", folder, archive)
	}
	return os.WriteFile(filepath.Join(folder, "SHA256SUMS"), sums.Bytes(), 0o666)
}

// build returns the binary for a platform. Its flags are those of the Dockerfile, so the binary is the image's.
func build(ctx context.Context, getenv func(string) string, platform string) ([]byte, error) {
	goos, goarch, _ := strings.Cut(platform, "/")
	goarch, goarm, _ := strings.Cut(goarch, "/v")
	path := filepath.Join(folder, program)
	defer os.Remove(path)
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-tags", "nethttpomithttp2",
		"-ldflags=-s -w -X main.version="+getenv("VERSION")+" -X main.revision="+getenv("REVISION"), "-o", path, ".")
	if name := getenv("GO"); name != "" {
		command.Path, command.Err = exec.LookPath(name)
	}
	// What this machine prefers must not show in a release: Go's defaults for each processor, and no flags.
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+goos, "GOARCH="+goarch, "GOARM="+goarm,
		"GOAMD64=v1", "GO386=sse2", "GOPPC64=power8", "GOFLAGS=-trimpath")
	command.Stderr = os.Stderr
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) } // so that go removes its own files
	if err := command.Run(); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

// file is what an archive holds.
type file struct {
	name    string
	mode    fs.FileMode
	content []byte
}

func packTar(w io.Writer, files []file, modified time.Time) error {
	zipped, err := gzip.NewWriterLevel(w, gzip.BestCompression)
	if err != nil {
		return err
	}
	archive := tar.NewWriter(zipped)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: int64(f.mode), Size: int64(len(f.content)), ModTime: modified}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		if _, err := archive.Write(f.content); err != nil {
			return err
		}
	}
	return errors.Join(archive.Close(), zipped.Close())
}

func packZip(w io.Writer, files []file, modified time.Time) error {
	archive := zip.NewWriter(w)
	for _, f := range files {
		header := &zip.FileHeader{Name: f.name, Method: zip.Deflate, Modified: modified}
		header.SetMode(f.mode)
		entry, err := archive.CreateHeader(header)
		if err != nil {
			return err
		}
		if _, err := entry.Write(f.content); err != nil {
			return err
		}
	}
	return archive.Close()
}
