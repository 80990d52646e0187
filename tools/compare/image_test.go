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
	"strings"
	"testing"
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

func compress(content []byte) []byte {
	var compressed bytes.Buffer
	w := gzip.NewWriter(&compressed)
	w.Write(content)
	w.Close()
	return compressed.Bytes()
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

// TestReadImage reads an image of two layers, as Docker before 25 saves it and as later ones do.
func TestReadImage(t *testing.T) {
	files := []file{
		{name: "etc/passwd", content: "root:x:0:0::/:/bin/sh\nmariaappgo:x:10001:10001::/:/sbin/nologin\n"},
		{name: "etc/ssl/certs/ca-certificates.crt", content: strings.Repeat("-----BEGIN CERTIFICATE-----\n", 3)},
		{name: "lib/apk/db/installed", content: "P:musl\nV:1\n\nP:busybox\nV:2\n"},
		{name: "bin/busybox", content: "busybox", mode: 0o755},
		{name: "bin/sh", mode: 0o777, link: "busybox"},
		{name: "sbin/apk", content: "apk", mode: 0o755},
		{name: "usr/local/gone", content: "no toolchain"},
	}
	var baseSize size
	for _, f := range files {
		baseSize += size(len(f.content))
	}
	base := makeArchive(append(files,
		file{name: "var/removed", content: "the layer above removes it"},
		file{name: "usr/local/go/bin/go", content: "go compiler", mode: 0o755})...)
	service := program(elf.PT_LOAD)
	upper := makeArchive(
		file{name: "var/.wh.removed"},
		file{name: "root/.cache/go-build/00/1", content: "cached"},
		file{name: binaryPath, content: service, mode: 0o755})
	diffIDs := []string{fmt.Sprintf("sha256:%x", sha256.Sum256(base)), fmt.Sprintf("sha256:%x", sha256.Sum256(upper))}
	config := fmt.Sprintf(`{"config": {"User": "10001:10001"}, "rootfs": {"type": "layers", "diff_ids": [%q, %q]}, "history": [
		{"comment": "Imported from -"}, {"created_by": "ENV A=b", "empty_layer": true},
		{"created_by": "RUN |1 A=b /bin/sh -c go   build # buildkit"}]}`, diffIDs[0], diffIDs[1])
	packages := 2
	want := &figures{
		Base: baseSize, Toolchain: 11, BuildCache: 6, Binary: size(len(service)), Unpacked: baseSize + 17 + size(len(service)),
		SHA256: digest(fmt.Sprintf("%x", sha256.Sum256([]byte(service)))), Linkage: "static", Packages: &packages, Certificates: 3,
		Executables: 4, Shells: names{"sh"}, Tools: names{"go"}, Managers: names{"apk"}, User: "mariaappgo", UID: 10001,
		Layers: []layer{
			{DiffID: diffIDs[0], CreatedBy: "Imported from -", Compressed: size(len(compress(base)))},
			{DiffID: diffIDs[1], CreatedBy: "RUN go build", Compressed: size(len(compress(upper)))},
		},
	}
	want.Download = want.Layers[0].Compressed + want.Layers[1].Compressed
	want.DownloadTime = seconds(want.Download) * 8 / 100e6
	for _, test := range []struct {
		name  string
		files []file
	}{
		{"uncompressed layers, one of them a link", []file{
			{name: "c.json", content: config},
			{name: "1/layer.tar", link: "../0/layer.tar"},
			{name: "0/layer.tar", content: string(base)},
			{name: "2/layer.tar", content: string(upper)},
			{name: "manifest.json", content: `[{"Config":"c.json","Layers":["1/layer.tar","2/layer.tar"]}]`},
		}},
		{"compressed layers", []file{
			{name: "blobs/sha256/c", content: config},
			{name: "blobs/sha256/1", content: string(compress(base))},
			{name: "blobs/sha256/2", content: string(compress(upper))},
			{name: "manifest.json", content: `[{"Config":"blobs/sha256/c","Layers":["blobs/sha256/1","blobs/sha256/2"]}]`},
		}},
	} {
		archive := makeArchive(test.files...)
		got, known := &figures{}, map[string]size{}
		err := got.readImage(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil }, known)
		if err != nil || !reflect.DeepEqual(got, want) || len(known) != 2 {
			t.Errorf("%s: %v, known %v,\n%+v, want\n%+v", test.name, err, known, got, want)
		}
	}
}

func TestReadBinary(t *testing.T) {
	f := &figures{}
	if err := f.readBinary([]byte(program(elf.PT_INTERP))); err != nil || f.Linkage != "dynamic" {
		t.Errorf("a program with a dynamic linker: %q, %v", f.Linkage, err)
	}
}

func TestReadUser(t *testing.T) {
	accounts := []byte("root:x:0:0::/:/bin/sh\nservice:x:77:88::/:/sbin/nologin\n")
	for user, want := range map[string]string{"": "root 0", "77": "service 77", "77:88": "service 77", "7": "n/a 7", "service": "USER service: must be"} {
		f := &figures{}
		err := f.readUser(user, accounts)
		if got := fmt.Sprint(f.User, " ", f.UID, err); !strings.Contains(got, want) {
			t.Errorf("USER %s: %s, want %s", user, got, want)
		}
	}
}
