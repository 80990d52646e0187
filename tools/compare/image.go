package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// layer is one layer of an image.
type layer struct {
	DiffID     string `json:"diff_id"`    // the digest of the layer's uncompressed archive
	CreatedBy  string `json:"created_by"` // the build's instruction; empty where the image does not say
	Compressed size   `json:"compressed_bytes"`
	Shared     bool   `json:"shared_after_change"` // a change of one line leaves it as it is
}

// readLayers reads an archive of docker save. It compresses each layer as docker push does it, by gzip
// with its default level, and finds the instruction that made it. Layers that are known are not
// compressed again; others are added to them.
func (f *figures) readLayers(archive tarball.Opener, known map[string]size) error {
	image, err := tarball.Image(archive, nil)
	if err != nil {
		return err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return err
	}
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	f.configuredUser = config.Config.User
	// The history has an entry for each instruction, and most of them make no layer.
	made := slices.DeleteFunc(config.History, func(h v1.History) bool { return h.EmptyLayer })
	for i, content := range layers {
		l := layer{DiffID: config.RootFS.DiffIDs[i].String()}
		if len(made) == len(layers) {
			l.CreatedBy = instruction(made[i])
		}
		if _, ok := known[l.DiffID]; !ok {
			compressed, err := tarball.LayerFromOpener(content.Uncompressed, tarball.WithCompressionLevel(gzip.DefaultCompression))
			if err != nil {
				return err
			}
			bytes, err := compressed.Size()
			if err != nil {
				return err
			}
			known[l.DiffID] = size(bytes)
		}
		l.Compressed = known[l.DiffID]
		f.Layers = append(f.Layers, l)
		f.Download += l.Compressed
	}
	f.DownloadTime = seconds(f.Download) * 8 / 100e6
	return nil
}

// What the engine adds to an instruction: its shell with the build arguments, and a comment.
var addedByEngine = regexp.MustCompile(`(\|\d+ .*)?/bin/sh -c (#\(nop\)\s*)?|\s*# buildkit$`)

// instruction is what made a layer as it stands in the Dockerfile, on one line.
func instruction(h v1.History) string {
	made := h.CreatedBy
	if made == "" {
		made = h.Comment // docker import leaves a comment only
	}
	return strings.Join(strings.Fields(addedByEngine.ReplaceAllString(made, "")), " ")
}

// Files of an image that are read and not only counted.
const (
	binaryPath       = "usr/local/bin/devops-info-service"
	accountsPath     = "etc/passwd"
	packagesPath     = "lib/apk/db/installed"
	certificatesPath = "etc/ssl/certs/ca-certificates.crt"
	zonesPath        = "usr/local/go/lib/time/zoneinfo.zip"
)

// readFiles reads an archive of docker export.
func (f *figures) readFiles(open tarball.Opener) error {
	content, err := open()
	if err != nil {
		return err
	}
	defer content.Close()
	contents := map[string][]byte{}
	var programs names // in a folder for them
	for archive := tar.NewReader(content); ; {
		file, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		switch bytes := size(file.Size); {
		case file.Name == binaryPath:
			f.Binary = bytes
		case strings.HasPrefix(file.Name, "usr/local/go/"):
			f.Toolchain += bytes
		case strings.HasPrefix(file.Name, "root/.cache/go-build/"):
			f.BuildCache += bytes
		default:
			f.Base += bytes
		}
		if file.Mode&0o100 != 0 && file.Size > 0 { // no folder, and not the empty files of the engine, such as etc/hosts
			f.Executables++
		}
		if folder := path.Base(path.Dir(file.Name)); folder == "bin" || folder == "sbin" {
			programs = append(programs, path.Base(file.Name))
		}
		switch file.Name {
		case binaryPath, accountsPath, packagesPath, certificatesPath, zonesPath:
			if contents[file.Name], err = io.ReadAll(archive); err != nil {
				return err
			}
		}
	}
	f.Unpacked = f.Base + f.Toolchain + f.BuildCache + f.Binary
	f.Shells = programs.among("ash", "bash", "dash", "ksh", "sh", "zsh")
	f.Tools = programs.among("as", "c++", "cc", "clang", "g++", "gcc", "git", "go", "gofmt", "ld", "make", "tcc")
	f.Managers = programs.among("apk", "apt", "apt-get", "dpkg", "dnf", "rpm", "yum")
	f.Certificates = bytes.Count(contents[certificatesPath], []byte("BEGIN CERTIFICATE"))
	f.zones = contents[zonesPath]
	if database, ok := contents[packagesPath]; ok {
		packages := bytes.Count(database, []byte("\nV:")) // the line with a package's version
		f.Packages = &packages
	}
	return errors.Join(f.readBinary(contents[binaryPath]), f.readUser(contents[accountsPath]))
}

// among returns those of the wanted names that are there.
func (n names) among(wanted ...string) names {
	return slices.DeleteFunc(wanted, func(name string) bool { return !slices.Contains(n, name) })
}

func (f *figures) readBinary(content []byte) error {
	program, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return fmt.Errorf("/%s: %w", binaryPath, err)
	}
	f.SHA256 = digest(fmt.Sprintf("%x", sha256.Sum256(content)))
	f.Linkage = "static"
	if slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		f.Linkage = "dynamic" // it names its dynamic linker
	}
	return nil
}

// readUser finds the number of the user that an image's configuration names, and the user's name.
func (f *figures) readUser(accounts []byte) (err error) {
	number, _, _ := strings.Cut(f.configuredUser, ":") // a group may follow
	if number == "" {
		number = "0"
	}
	if f.UID, err = strconv.Atoi(number); err != nil {
		return fmt.Errorf("USER %s: must be a number, because Kubernetes' runAsNonRoot needs it", f.configuredUser)
	}
	if account := regexp.MustCompile(`(?m)^([^:]+):[^:]*:` + number + `:`).FindSubmatch(accounts); account != nil {
		f.User = string(account[1])
	}
	return nil
}
