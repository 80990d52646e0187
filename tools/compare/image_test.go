package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// file is one entry of an archive that a test makes: a regular file, or a link to another.
type file struct {
	name, content string
	mode          int64
	link          string
}

func makeArchive(files ...file) []byte {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content)), Typeflag: tar.TypeReg}
		if f.link != "" {
			header.Typeflag, header.Linkname = tar.TypeSymlink, f.link
		}
		w.WriteHeader(header)
		io.WriteString(w, f.content)
	}
	w.Close()
	return archive.Bytes()
}

func compress(content string) string {
	var compressed bytes.Buffer
	w := gzip.NewWriter(&compressed)
	io.WriteString(w, content)
	w.Close()
	return compressed.String()
}

// program makes the smallest ELF file that has one program header of a type.
func program(kind elf.ProgType) string {
	var file bytes.Buffer
	binary.Write(&file, binary.LittleEndian, elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
	})
	binary.Write(&file, binary.LittleEndian, elf.Prog64{Type: uint32(kind)})
	return file.String()
}

func opener(archive []byte) tarball.Opener {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil }
}

// TestReadLayers reads an archive as Docker before 25 saves it, and as later ones do.
func TestReadLayers(t *testing.T) {
	base, service := strings.Repeat("base", 1000), strings.Repeat("service", 100)
	diffIDs := []string{fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(base))), fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(service)))}
	config := fmt.Sprintf(`{"config": {"User": "10001:10001"}, "rootfs": {"type": "layers", "diff_ids": [%q, %q]}, "history": [
		{"comment": "Imported from -"}, {"created_by": "ENV A=b", "empty_layer": true},
		{"created_by": "RUN |1 A=b /bin/sh -c go   build # buildkit"}]}`, diffIDs[0], diffIDs[1])
	want := []layer{
		{DiffID: diffIDs[0], CreatedBy: "Imported from -", Compressed: size(len(compress(base)))},
		{DiffID: diffIDs[1], CreatedBy: "RUN go build", Compressed: size(len(compress(service)))},
	}
	for name, archive := range map[string][]byte{
		"uncompressed layers, one of them a link": makeArchive(
			file{name: "c.json", content: config},
			file{name: "1/layer.tar", link: "../0/layer.tar"},
			file{name: "0/layer.tar", content: base},
			file{name: "2/layer.tar", content: service},
			file{name: "manifest.json", content: `[{"Config":"c.json","Layers":["1/layer.tar","2/layer.tar"]}]`}),
		"compressed layers": makeArchive(
			file{name: "blobs/sha256/c", content: config},
			file{name: "blobs/sha256/1", content: compress(base)},
			file{name: "blobs/sha256/2", content: compress(service)},
			file{name: "manifest.json", content: `[{"Config":"blobs/sha256/c","Layers":["blobs/sha256/1","blobs/sha256/2"]}]`}),
	} {
		f, known := &figures{}, map[string]size{}
		err := f.readLayers(opener(archive), known)
		download := want[0].Compressed + want[1].Compressed
		if err != nil || !slices.Equal(f.Layers, want) || f.Download != download || len(known) != 2 || f.configuredUser != "10001:10001" {
			t.Errorf("%s: %v, known %v,\n%+v, want\n%+v", name, err, known, f, want)
		}
	}
}

func TestReadFiles(t *testing.T) {
	files := []file{
		{name: "etc/passwd", content: "root:x:0:0::/:/bin/sh\nmariaappgo:x:10001:10001::/:/sbin/nologin\n"},
		{name: "etc/ssl/certs/ca-certificates.crt", content: strings.Repeat("-----BEGIN CERTIFICATE-----\n", 3)},
		{name: "lib/apk/db/installed", content: "P:musl\nV:1\n\nP:busybox\nV:2\n"},
		{name: "bin/busybox", content: "busybox", mode: 0o755},
		{name: "bin/sh", mode: 0o777, link: "busybox"},
		{name: "sbin/apk", content: "apk", mode: 0o755},
		{name: "usr/local/gone", content: "no toolchain"},
	}
	var base size
	for _, f := range files {
		base += size(len(f.content))
	}
	service := program(elf.PT_LOAD)
	archive := makeArchive(append(files,
		file{name: ".dockerenv", mode: 0o755},
		file{name: "usr/local/go/bin/go", content: "go compiler", mode: 0o755},
		file{name: "root/.cache/go-build/00/1", content: "cached"},
		file{name: binaryPath, content: service, mode: 0o755})...)
	packages := 2
	want := &figures{
		Base: base, Toolchain: 11, BuildCache: 6, Binary: size(len(service)), Unpacked: base + 11 + 6 + size(len(service)),
		SHA256: digest(fmt.Sprintf("%x", sha256.Sum256([]byte(service)))), Linkage: "static", Packages: &packages, Certificates: 3,
		Executables: 4, Shells: names{"sh"}, Tools: names{"go"}, Managers: names{"apk"},
		User: "mariaappgo", UID: 10001, configuredUser: "10001:10001",
	}
	got := &figures{configuredUser: "10001:10001"}
	if err := got.readFiles(opener(archive)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n%+v, want\n%+v", err, got, want)
	}
	archive = makeArchive(file{name: binaryPath, content: program(elf.PT_INTERP)})
	if err := got.readFiles(opener(archive)); err != nil || got.Linkage != "dynamic" {
		t.Errorf("a program with a dynamic linker: %q, %v", got.Linkage, err)
	}
}

func TestReadUser(t *testing.T) {
	accounts := []byte("root:x:0:0::/:/bin/sh\nservice:x:77:88::/:/sbin/nologin\n")
	for user, want := range map[string]string{"": "root 0", "77": "service 77", "7": " 7", "service": "USER service: must be"} {
		f := &figures{configuredUser: user}
		err := f.readUser(accounts)
		if got := fmt.Sprint(f.User, " ", f.UID, err); !strings.Contains(got, want) {
			t.Errorf("USER %s: %s, want %s", user, got, want)
		}
	}
}
