package main

import (
	"encoding/json"
	"encoding/xml"
	"os"
	"strings"
	"testing"
)

// goodReport is a report with every claim true.
func goodReport() *report {
	packages := 15
	image := func(base, toolchain, cache size, user string, uid int) *figures {
		unpacked := base + toolchain + cache + 4_980_000
		return &figures{
			Unpacked: unpacked, Base: base, Toolchain: toolchain, BuildCache: cache, Binary: 4_980_000,
			Ratio: 274_000_000 / ratio(unpacked), Reduction: 100 - percent(unpacked)/2_740_000, SHA256: "41ca7249a22012345", Linkage: "static",
			Packages: &packages, Certificates: 147, Zones: "597 of 597", User: user, UID: uid, Memory: 1_500_000, Endpoints: names{"/", "/health"},
			Layers: []layer{{"sha256:1", "RUN a | b", 1_000_000, true}},
		}
	}
	r := &report{Version: "devops-info-service 1.0.0 go1.21.13 linux/amd64", Zones: 597, Images: map[string]*figures{
		single:  image(7_430_000, 197_970_000, 63_620_000, "root", 0),
		multi:   image(7_390_000, 0, 0, "mariaappgo", 10001),
		scratch: image(81, 0, 0, "mariaappgo", 10001),
	}}
	r.Images[single].Tools = names{"go", "gofmt"}
	r.Images[scratch].Packages = nil
	r.Claims = claims(r)
	return r
}

func TestClaims(t *testing.T) {
	if r := goodReport(); !r.holds() {
		t.Errorf("a good report does not hold: %v", r.Claims)
	}
	for _, test := range []struct {
		label  string // of the claim that the change concerns
		change func(r *report, m, s *figures)
		want   string
	}{
		{"multi: unpacked <", func(_ *report, m, _ *figures) { m.Unpacked = 18_400_000 }, "FAIL"},
		{"multi: more than 93.7", func(_ *report, m, _ *figures) { m.Reduction = 93.7 }, "FAIL"},
		{"multi: more than 15.9", func(_ *report, m, _ *figures) { m.Ratio = 15.9 }, "FAIL"},
		{"multi: binary <", func(_ *report, m, _ *figures) { m.Binary = 10_000_000 }, "FAIL"},
		{"multi: memory", func(_ *report, m, _ *figures) { m.Memory = 3_200_000 }, "FAIL"},
		{"multi: memory", func(_ *report, m, _ *figures) { m.Memory = 0 }, "FAIL"},
		{"multi: user mariaappgo", func(_ *report, m, _ *figures) { m.User = "nobody" }, "FAIL"},
		{"multi: no Go toolchain", func(_ *report, m, _ *figures) { m.Tools = names{"git"} }, "FAIL"},
		{"multi: 100 CA certificates", func(_ *report, m, _ *figures) { m.Certificates = 99 }, "FAIL"},
		{"multi: every time zone", func(_ *report, m, _ *figures) { m.Zones = "596 of 597" }, "FAIL"},
		{"multi: every time zone", func(r *report, m, _ *figures) { r.Zones, m.Zones = 0, "0 of 0" }, "FAIL"},
		{"multi: binary is static", func(_ *report, m, _ *figures) { m.Linkage = "dynamic" }, "FAIL"},
		{"multi: the same binary", func(_ *report, m, _ *figures) { m.SHA256 = "b" }, "FAIL"},
		{"multi: user number not 0", func(_ *report, m, _ *figures) { m.UID = 0 }, "FAIL"},
		{"multi: both endpoints", func(_ *report, m, _ *figures) { m.Endpoints = names{"/health"} }, "FAIL"},
		{"scratch: binary is static", func(_ *report, _, s *figures) { s.Linkage = "dynamic" }, "FAIL"},
		{"scratch: the same binary", func(_ *report, _, s *figures) { s.SHA256 = "b" }, "FAIL"},
		{"scratch: user number not 0", func(_ *report, _, s *figures) { s.UID = 0 }, "FAIL"},
		{"scratch: both endpoints", func(_ *report, _, s *figures) { s.Endpoints = names{"/health"} }, "FAIL"},
		{"multi: goal: binary", func(_ *report, m, _ *figures) { m.Binary = 5_000_000 }, "met"},
		{"multi: goal: binary", func(_ *report, m, _ *figures) { m.Binary = 5_100_000 }, "missed by 2.0 %"},
		{"multi: goal: unpacked", func(r *report, m, _ *figures) { r.Version, m.Unpacked = "x go1.26.8 y", 14_000_000 },
			"missed by 12.0 % (built by go1.26.8; the goal is for go1.21)"},
	} {
		t.Run(test.label, func(t *testing.T) {
			r := goodReport()
			test.change(r, r.Images[multi], r.Images[scratch])
			r.Claims = claims(r)
			for _, c := range r.Claims {
				if strings.HasPrefix(c.Image+": "+c.Label, test.label) && c.Result != test.want {
					t.Errorf("%s: %q, want %q", c.Label, c.Result, test.want)
				}
			}
			if r.holds() != (test.want != "FAIL") {
				t.Errorf("the report holds: %v", r.holds())
			}
		})
	}
}

// contains looks for texts.
func contains(t *testing.T, written string, texts ...string) {
	t.Helper()
	for _, want := range texts {
		if !strings.Contains(written, want) {
			t.Errorf("%q is missing in\n%s", want, written)
		}
	}
}

func TestFormats(t *testing.T) {
	text, _ := formats["text"](goodReport())
	contains(t, text, "| – Go toolchain ", " 274.00 MB |", " 22.2 : 1 |", " n/a |", " pass |", `| single: RUN a \| b `, "go1.21.13")
	if lines := strings.Split(text, "\n"); len([]rune(lines[0])) != len([]rune(lines[3])) {
		t.Errorf("the columns are not aligned:\n%s", text)
	}
	written, _ := formats["json"](goodReport())
	contains(t, written, `"unpacked_bytes": 274000000`, `"result": "pass"`)
	var back report
	if err := json.Unmarshal([]byte(written), &back); err != nil || back.Images[scratch].Packages != nil || *back.Images[multi].Packages != 15 {
		t.Errorf("%v in\n%s", err, written)
	}
}

func TestDocs(t *testing.T) {
	here, _ := os.Getwd()
	defer os.Chdir(here)
	os.Chdir(t.TempDir())
	os.Mkdir("docs", 0o755)
	os.WriteFile("docs/comparison.md", []byte("before\n"+beginMark+"\nold\n"+endMark+"\nafter\n"), 0o600)
	os.WriteFile("README.md", []byte(endMark+beginMark), 0o600)
	if said, err := writeDocs(goodReport()); err != nil || !strings.HasPrefix(said, "README.md is left as it is") {
		t.Errorf("said %q, %v", said, err)
	}
	page, _ := os.ReadFile("docs/comparison.md")
	contains(t, string(page), "before\n"+beginMark+"\n\n|", "| size, unpacked ", "| download ", "| – Go toolchain ", "|\n\nMeasured", "\n\n"+endMark+"\nafter\n")
	if readme, _ := os.ReadFile("README.md"); strings.Contains(string(page), "old") || string(readme) != endMark+beginMark {
		t.Errorf("README.md without the marks in order is %s; the page is %s", readme, page)
	}
	chart, _ := os.ReadFile("docs/comparison.svg")
	contains(t, string(chart), "274.00 MB", "22.2 : 1", "55.0 : 1", "197.97 MB", "Go build cache", "prefers-color-scheme: dark")
	if err := xml.Unmarshal(chart, new(struct{})); err != nil {
		t.Errorf("%v in\n%s", err, chart)
	}
}
