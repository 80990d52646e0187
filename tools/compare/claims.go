package main

import (
	"fmt"
	"slices"
)

// What is claimed. "reference" in a claim's label is the figure that the project set out to beat.
const (
	maxMultiBytes   = 12_500_000
	maxScratchBytes = 5_100_000
	maxBinaryBytes  = 5_000_000
	maxMemoryBytes  = 3_200_000
	minPercentLess  = 93.7
	minRatio        = 15.9
	minCertificates = 100
	minZones        = 400
)

// claim is one statement about an image, what was measured, and whether the statement is true.
type claim struct {
	Image    string `json:"image"`
	Label    string `json:"claim"`
	Measured string `json:"measured"`
	Holds    bool   `json:"holds"`
}

// claims judges the measurements. Times are no claims, because a busy machine would make them false.
func claims(r *report) []claim {
	s, m, c := r.Images[single], r.Images[multi], r.Images[scratch]
	ratio := float64(s.Unpacked) / float64(m.Unpacked)
	percent := 100 * (1 - 1/ratio)
	user := func(f *figures) string { return fmt.Sprintf("%s (%d)", f.User, f.UID) }
	sameKeys := func(f *figures) (string, bool) {
		if len(f.Keys) > 0 && slices.Equal(f.Keys, s.Keys) {
			return "the same", true
		}
		return "differ", false
	}
	multiKeys, multiSame := sameKeys(m)
	scratchKeys, scratchSame := sameKeys(c)

	return []claim{
		{multi, fmt.Sprintf("image <= %.1f MB (reference 18.4)", maxMultiBytes/1e6), megabytes(m.Unpacked), m.Unpacked <= maxMultiBytes},
		{multi, fmt.Sprintf("at least %.1f %% smaller", minPercentLess), fmt.Sprintf("%.1f %%", percent), percent >= minPercentLess},
		{multi, fmt.Sprintf("at least %.1f : 1", minRatio), fmt.Sprintf("%.1f : 1", ratio), ratio >= minRatio},
		{multi, fmt.Sprintf("binary <= %.1f MB (reference 10)", maxBinaryBytes/1e6), megabytes(m.Binary), m.Binary <= maxBinaryBytes},
		{multi, "binary is static", m.Linkage, m.Linkage == "static"},
		{multi, "the same binary as single", shortHash(m.SHA256), m.SHA256 == s.SHA256},
		{multi, "runs as mariaappgo, uid not 0", user(m), m.User == "mariaappgo" && m.UID != 0},
		{multi, "no Go toolchain, compiler or git", list(m.Tools), len(m.Tools) == 0},
		{multi, fmt.Sprintf("CA bundle of >= %d certificates", minCertificates), fmt.Sprint(m.Certificates), m.Certificates >= minCertificates},
		{multi, "every time zone works", fmt.Sprintf("%d of %d", r.Zones-r.ZonesBad, r.Zones), r.Zones >= minZones && r.ZonesBad == 0},
		{multi, fmt.Sprintf("memory <= %.1f MB (docker stats)", maxMemoryBytes/1e6), megabytes(m.Memory), m.Memory > 0 && m.Memory <= maxMemoryBytes},
		{multi, "both endpoints answer, with single's keys", multiKeys, multiSame},
		{scratch, fmt.Sprintf("image <= %.1f MB", maxScratchBytes/1e6), megabytes(c.Unpacked), c.Unpacked <= maxScratchBytes},
		{scratch, "binary is static", c.Linkage, c.Linkage == "static"},
		{scratch, "the same binary as single", shortHash(c.SHA256), c.SHA256 == s.SHA256},
		{scratch, "uid not 0", user(c), c.UID != 0},
		{scratch, "both endpoints answer, with single's keys", scratchKeys, scratchSame},
	}
}

// holds reports whether every claim is true.
func (r *report) holds() bool {
	return !slices.ContainsFunc(r.Claims, func(c claim) bool { return !c.Holds })
}
