package main

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// program makes the smallest ELF file that has one program header of a type.
func program(t *testing.T, kind elf.ProgType) string {
	t.Helper()
	header := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
	}
	var file bytes.Buffer
	for _, part := range []any{header, elf.Prog64{Type: uint32(kind)}} {
		if err := binary.Write(&file, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return file.String()
}

func TestLinkage(t *testing.T) {
	for _, test := range []struct {
		name, file, want string
	}{
		{"no dynamic linker", program(t, elf.PT_LOAD), "static"},
		{"a dynamic linker", program(t, elf.PT_INTERP), "dynamic"},
		{"no ELF file", "#!/bin/sh\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := linkage([]byte(test.file))
			if got != test.want || (err == nil) != (test.want != "") {
				t.Errorf("linkage = %q, %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestMeasureFiles(t *testing.T) {
	alpine := []entry{
		{name: "etc/hosts", mode: 0o755}, // the engine's, executable and empty
		{name: "etc/passwd", content: "root:x:0:0::/:/bin/sh\nmariaappgo:x:10001:10001::/:/sbin/nologin\n"},
		{name: "etc/ssl/certs/ca-certificates.crt", content: strings.Repeat("-----BEGIN CERTIFICATE-----\n", 3)},
		{name: "lib/apk/db/installed", content: "P:musl\nV:1\n\nP:busybox\nV:2\n"},
		{name: "bin/busybox", content: "busybox", mode: 0o755},
		{name: "bin/sh", mode: 0o777, kind: tar.TypeSymlink, link: "busybox"},
		{name: "sbin/apk", content: "apk", mode: 0o4755},
		{name: "tmp/", mode: 0o1777, kind: tar.TypeDir},
		{name: "home/", mode: 0o755, kind: tar.TypeDir, uid: 10001},
		{name: "root/", mode: 0o755, kind: tar.TypeDir},
	}
	binary := entry{name: binaryPath, content: program(t, elf.PT_LOAD), mode: 0o755}
	size := int64(len(binary.content))

	measured := func(t *testing.T, user string, entries ...entry) *figures {
		t.Helper()
		s, err := readFileSystem(bytes.NewReader(makeArchive(t, entries...)))
		if err != nil {
			t.Fatal(err)
		}
		f := &figures{}
		if err := measureFiles(f, s, user); err != nil {
			t.Fatal(err)
		}
		return f
	}
	t.Run("single-stage", func(t *testing.T) {
		f := measured(t, "", append(slices.Clone(alpine), binary,
			entry{name: "usr/local/go/bin/go", content: "go compiler", mode: 0o755},
			entry{name: "root/.cache/go-build/00/1", content: "cached"})...)
		if f.Binary != size || f.Toolchain != 11 || f.BuildCache != 6 || f.Base != f.Unpacked-size-17 || f.WithoutCache != f.Unpacked-6 {
			t.Errorf("binary %d, toolchain %d, cache %d, base %d, without cache %d of %d", f.Binary, f.Toolchain, f.BuildCache, f.Base, f.WithoutCache, f.Unpacked)
		}
		if f.User != "root" || f.UID != 0 || f.WritableCount != 3 {
			t.Errorf("user %s (%d) with %d folders, want root (0) with all 3", f.User, f.UID, f.WritableCount)
		}
		if list(f.Tools) != "go" {
			t.Errorf("tools %q, want go", f.Tools)
		}
	})
	t.Run("multi-stage on Alpine", func(t *testing.T) {
		f := measured(t, "10001:10001", append(slices.Clone(alpine), binary)...)
		if f.Packages == nil || *f.Packages != 2 {
			t.Errorf("packages %v, want 2", f.Packages)
		}
		if f.Executables != 3 || f.SetID != 1 || f.Certificates != 3 {
			t.Errorf("%d executables, %d setuid, %d certificates, want 3, 1, 3", f.Executables, f.SetID, f.Certificates)
		}
		if list(f.Shells) != "sh" || list(f.Managers) != "apk" || list(f.Tools) != "none" {
			t.Errorf("shells %q, managers %q, tools %q", f.Shells, f.Managers, f.Tools)
		}
		if f.User != "mariaappgo" || list(f.Writable) != "/tmp /home" {
			t.Errorf("user %q can write %q, want mariaappgo, /tmp and /home", f.User, f.Writable)
		}
	})
	t.Run("scratch", func(t *testing.T) {
		f := measured(t, "10001", binary)
		if f.Packages != nil {
			t.Errorf("packages %d, want n/a", *f.Packages)
		}
		if f.User != notAvailable || f.UID != 10001 {
			t.Errorf("user %s (%d), want n/a (10001)", f.User, f.UID)
		}
	})
}

func TestAccount(t *testing.T) {
	const accounts = "root:x:0:0::/:/bin/sh\nservice:x:77:88::/:/sbin/nologin\n"
	for _, test := range []struct {
		name, user, accounts string
		wantName             string
		wantUID              int
		fails                bool
	}{
		{"none is root", "", accounts, "root", 0, false},
		{"by name", "service", accounts, "service", 77, false},
		{"by number with a group", "77:88", accounts, "service", 77, false},
		{"a number without an account", "5", accounts, notAvailable, 5, false},
		{"a name without an account", "nobody", accounts, "", 0, true},
		{"root without a file of accounts", "", "", notAvailable, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			name, uid, err := account(test.user, []byte(test.accounts))
			if name != test.wantName || uid != test.wantUID || (err != nil) != test.fails {
				t.Errorf("account = %q, %d, %v, want %q, %d", name, uid, err, test.wantName, test.wantUID)
			}
		})
	}
}

func TestParseMemory(t *testing.T) {
	for _, test := range []struct {
		name, usage string
		want        int64 // 0 for an error
	}{
		{"docker", "1.5MiB / 2GiB", 1572864},
		{"podman", "1.5MB / 2GB", 1500000},
		{"bytes", "512B / 0B", 512},
		{"no unit", "15 / 2GiB", 0},
		{"nothing", "-- / --", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseMemory(test.usage)
			if got != test.want || (err == nil) != (test.want != 0) {
				t.Errorf("parseMemory(%q) = %d, %v, want %d", test.usage, got, err, test.want)
			}
		})
	}
}

func TestParseResident(t *testing.T) {
	for _, test := range []struct {
		name, status string
		want         int64
		ok           bool
	}{
		{"both", "VmRSS:\t   9 kB\nRssAnon:\t     10 kB\nRssFile:\t     20 kB\nRssShmem:\t 1 kB\n", 30 << 10, true},
		{"one is missing", "RssAnon:\t     10 kB\n", 10 << 10, false},
		{"nothing", "", 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, ok := parseResident(test.status); got != test.want || ok != test.ok {
				t.Errorf("parseResident = %d, %v, want %d, %v", got, ok, test.want, test.ok)
			}
		})
	}
}

func TestResponseKeys(t *testing.T) {
	handler := http.NewServeMux()
	handler.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte(`{"service":{"name":"x"},"endpoints":[{"path":"/"},{"path":"/health"}]}`))
	})
	handler.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"status":"healthy"}`)) })
	server := httptest.NewServer(handler)
	defer server.Close()
	got, err := responseKeys(context.Background(), strings.TrimPrefix(server.URL, "http://"))
	want := []string{"/ endpoints", "/ endpoints path", "/ service", "/ service name", "/health status"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("keys %q, %v, want %q", got, err, want)
	}
}
