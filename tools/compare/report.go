package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// The kinds of images, which are also the ends of make's build targets.
const single, multi, scratch = "single", "multi", "scratch"

var kinds = []string{single, multi, scratch}

// figures is what was measured of one image. The tags row and short are labels in the long and the short table.
type figures struct {
	Unpacked   size    `json:"unpacked_bytes" row:"unpacked: the image's files" short:"size, unpacked"`
	Base       size    `json:"base_bytes" row:"– base image and the rest"`
	Toolchain  size    `json:"toolchain_bytes" row:"– Go toolchain"`
	BuildCache size    `json:"build_cache_bytes" row:"– Go build cache"`
	Binary     size    `json:"binary_bytes" row:"– the service's binary"`
	Ratio      ratio   `json:"ratio" row:"– single-stage to it" short:"ratio of single-stage to it"`
	Reduction  percent `json:"reduction_percent" row:"– smaller than single-stage by" short:"smaller than single-stage by"`
	EngineSize size    `json:"engine_size_bytes" row:"size in docker images"`
	SHA256     digest  `json:"binary_sha256" row:"sha256 of the binary"`
	Linkage    string  `json:"binary_linkage" row:"– linked"`
	Stripped   size    `json:"saved_by_stripping_bytes" row:"– saved in it by -s -w"`

	Packages     *int   `json:"apk_packages_count" row:"apk packages"` // nil without apk
	Executables  int    `json:"executable_files_count" row:"executable files"`
	Shells       names  `json:"shells" row:"shells"`
	Tools        names  `json:"build_tools" row:"Go, C compiler, make, git"`
	Managers     names  `json:"package_managers" row:"package manager"`
	User         string `json:"user" row:"user"`
	UID          int    `json:"uid" row:"– its number"`
	Certificates int    `json:"ca_certificates_count" row:"CA certificates"`
	Zones        string `json:"time_zones_working" row:"time zones that work"` // tried by a shell in the image

	Download       size    `json:"download_bytes" row:"download: its layers, gzip" short:"download"`
	DownloadTime   seconds `json:"download_at_100_mbit_seconds" row:"– at 100 Mbit/s (computed)"`
	ChangeDownload size    `json:"download_after_change_bytes" row:"– again after a change of one line" short:"download after a change of one line"`
	Start          seconds `json:"start_seconds" row:"docker run to first 200 of /health"`
	Memory         size    `json:"memory_bytes" row:"memory then, by docker stats" short:"memory"`
	Endpoints      names   `json:"endpoints"` // that answer
	BuildCold      seconds `json:"build_cold_seconds" row:"build, nothing cached"`
	BuildChange    seconds `json:"build_after_change_seconds" row:"build after a change of one line"`

	Layers         []layer `json:"layers"`
	configuredUser string  // a number, perhaps with a group after a colon; empty for root
	zones          []byte  // Go's zoneinfo.zip
}

// The kinds of values, as a table shows them.
type (
	size    int64 // in bytes
	seconds float64
	percent float64
	ratio   float64 // to 1
	names   []string
	digest  string // in hexadecimal digits
)

func (s size) String() string {
	if -100e3 < s && s < 100e3 {
		return fmt.Sprintf("%d B", int64(s))
	}
	return fmt.Sprintf("%.2f MB", float64(s)/1e6)
}

func (s seconds) String() string { return fmt.Sprintf("%.2f s", float64(s)) }
func (p percent) String() string { return fmt.Sprintf("%.1f %%", float64(p)) }
func (r ratio) String() string   { return fmt.Sprintf("%.1f : 1", float64(r)) }
func (d digest) String() string  { return fmt.Sprintf("%.12s", string(d)) }

func (n names) String() string {
	if len(n) == 0 {
		return "none"
	}
	return strings.Join(n, " ")
}

// report is everything that is measured, and what is claimed about it.
type report struct {
	Date    string              `json:"date"`
	Engine  string              `json:"engine"`
	CPUs    int                 `json:"cpu_count"`
	Version string              `json:"version"`          // what -version prints
	Zones   int                 `json:"time_zones_count"` // that were tried
	Images  map[string]*figures `json:"images"`
	Claims  []claim             `json:"claims"`
}

// claim is one statement about an image, what was measured, and how it came out.
type claim struct {
	Image    string `json:"image"`
	Label    string `json:"claim"`
	Measured string `json:"measured"`
	Result   string `json:"result"`
}

// claims judges the measurements. Times are no claims, because a busy machine would make them false.
// The reference figures were given with the project's task, to be beaten. The goals are our own; a
// goal that is missed fails nothing, because an honest change may miss it.
func claims(r *report) []claim {
	var all []claim
	add := func(image, label string, measured any, holds bool) {
		result := "FAIL"
		if holds {
			result = "pass"
		}
		all = append(all, claim{image, label, fmt.Sprint(measured), result})
	}
	s, m := r.Images[single], r.Images[multi]
	add(multi, "unpacked < 18.4 MB, the reference", m.Unpacked, m.Unpacked < 18.4e6)
	add(multi, "more than 93.7 % smaller, the reference", m.Reduction, m.Reduction > 93.7)
	add(multi, "more than 15.9 : 1, the reference", m.Ratio, m.Ratio > 15.9)
	add(multi, "binary < 10 MB, the reference", m.Binary, m.Binary < 10e6)
	add(multi, "memory < 3.2 MB, the reference", m.Memory, m.Memory > 0 && m.Memory < 3.2e6)
	add(multi, "user mariaappgo", m.User, m.User == "mariaappgo")
	add(multi, "no Go toolchain, compiler or git", m.Tools, len(m.Tools) == 0)
	// With fewer than 100 certificates or 400 time zones, they were not found.
	add(multi, "100 CA certificates or more", m.Certificates, m.Certificates >= 100)
	add(multi, "every time zone works", m.Zones, r.Zones >= 400 && m.Zones == fmt.Sprintf("%d of %[1]d", r.Zones))
	for _, kind := range []string{multi, scratch} {
		f := r.Images[kind]
		add(kind, "binary is static", f.Linkage, f.Linkage == "static")
		add(kind, "the same binary as single", f.SHA256, f.SHA256 == s.SHA256)
		add(kind, "user number not 0", f.UID, f.UID != 0)
		add(kind, "both endpoints answer", f.Endpoints, len(f.Endpoints) == 2)
	}
	aim := func(label string, measured, goal size) {
		result := "met"
		if measured > goal {
			result = fmt.Sprintf("missed by %v", percent(100*float64(measured-goal)/float64(goal)))
		}
		if builtBy := regexp.MustCompile(`go\d\S*`).FindString(r.Version); !strings.HasPrefix(builtBy, "go1.21.") {
			result += fmt.Sprintf(" (built by %s; the goal is for go1.21)", builtBy)
		}
		all = append(all, claim{multi, fmt.Sprintf("goal: %s <= %v", label, goal), measured.String(), result})
	}
	aim("unpacked", m.Unpacked, 12.5e6)
	aim("binary", m.Binary, 5.0e6)
	return all
}

// holds reports whether every claim is true.
func (r *report) holds() bool {
	return !slices.ContainsFunc(r.Claims, func(c claim) bool { return c.Result == "FAIL" })
}
