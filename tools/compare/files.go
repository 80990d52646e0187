package main

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// measureFiles takes the measurements that need an image's files only.
func measureFiles(f *figures, s *fileSystem, user string) error {
	f.Unpacked = s.size("")
	f.Toolchain = s.size("usr/local/go")
	f.BuildCache = s.size("root/.cache/go-build")
	f.Binary = s.size(binaryPath)
	f.Base = f.Unpacked - f.Toolchain - f.BuildCache - f.Binary
	f.WithoutCache = f.Unpacked - f.BuildCache
	f.Exported = s.exported

	binary := s.contents[binaryPath]
	f.SHA256 = fmt.Sprintf("%x", sha256.Sum256(binary))
	var err error
	if f.Linkage, err = linkage(binary); err != nil {
		return err
	}
	f.Packages = packages(s)
	for _, entry := range s.files {
		if !entry.mode.IsRegular() {
			continue
		}
		// Docker's own etc/hosts and the like are executable, and empty until a container starts.
		if entry.mode&0o100 != 0 && entry.size > 0 {
			f.Executables++
		}
		if entry.mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			f.SetID++
		}
	}
	f.Shells = commands(s, "sh", "ash", "bash", "dash", "zsh", "ksh")
	f.Tools = commands(s, "go", "gofmt", "cc", "gcc", "tcc", "clang", "c++", "g++", "ld", "as", "make", "git")
	f.Managers = commands(s, "apk", "apt", "apt-get", "dpkg", "dnf", "yum", "rpm")
	f.Certificates = bytes.Count(s.contents[certificatesPath], []byte("BEGIN CERTIFICATE"))
	if f.User, f.UID, err = account(user, s.contents[accountsPath]); err != nil {
		return err
	}
	f.Writable = writableFolders(s, f.UID)
	f.WritableCount = len(f.Writable)
	return nil
}

// linkage says whether a program needs a dynamic linker or shared libraries.
func linkage(binary []byte) (string, error) {
	program, err := elf.NewFile(bytes.NewReader(binary))
	if err != nil {
		return "", err
	}
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			return "dynamic", nil
		}
	}
	libraries, err := program.ImportedLibraries()
	if err != nil {
		return "", err
	}
	if len(libraries) > 0 {
		return "dynamic", nil
	}
	return "static", nil
}

// packages counts what apk has installed; nil without apk's database.
func packages(s *fileSystem) *int {
	database, ok := s.contents[packagesPath]
	if !ok {
		return nil
	}
	count := 0
	for _, line := range strings.Split(string(database), "\n") {
		if strings.HasPrefix(line, "P:") {
			count++
		}
	}
	return &count
}

var binFolder = regexp.MustCompile(`^(.*/)?s?bin/([^/]+)$`)

// commands returns those of the names that are in one of the image's bin folders.
func commands(s *fileSystem, names ...string) []string {
	found := []string{}
	for _, f := range s.files {
		match := binFolder.FindStringSubmatch(f.path)
		if match != nil && slices.Contains(names, match[2]) && !slices.Contains(found, match[2]) {
			found = append(found, match[2])
		}
	}
	sort.Strings(found)
	return found
}

// account finds the name and the number of the user that an image's configuration names: nothing
// for root, a number or a name, and perhaps a group after a colon.
func account(user string, accounts []byte) (string, int, error) {
	user, _, _ = strings.Cut(user, ":")
	if user == "" {
		user = "0"
	}
	for _, line := range strings.Split(string(accounts), "\n") {
		fields := strings.Split(line, ":")
		if len(fields) > 2 && (fields[0] == user || fields[2] == user) {
			uid, err := strconv.Atoi(fields[2])
			return fields[0], uid, err
		}
	}
	uid, err := strconv.Atoi(user)
	if err != nil {
		return "", 0, fmt.Errorf("user %q has no line in /%s", user, accountsPath)
	}
	return notAvailable, uid, nil
}

// writableFolders returns the folders whose mode lets a user write; root needs no mode.
func writableFolders(s *fileSystem, uid int) []string {
	var folders []string
	for _, f := range s.files {
		if f.mode.IsDir() && (uid == 0 || f.mode&0o002 != 0 || (f.uid == uid && f.mode&0o200 != 0)) {
			folders = append(folders, "/"+f.path)
		}
	}
	return folders
}
