//go:build bench

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	beginMark = "<!-- begin make bench-docs -->\n"
	endMark   = "<!-- end make bench-docs -->\n"
)

// writeDocs puts the report between the marks in performance.md and draws performance.svg.
func writeDocs(t *testing.T, folder, report string, series [2][]float64) {
	t.Helper()
	path := filepath.Join(folder, "performance.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), beginMark)
	_, after, ended := strings.Cut(rest, endMark)
	if !found || !ended {
		t.Fatalf("%s lacks the lines %s and %s", path, strings.TrimSpace(beginMark), strings.TrimSpace(endMark))
	}
	for name, content := range map[string]string{
		"performance.md":  before + beginMark + report + endMark + after,
		"performance.svg": chart(series),
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// chart draws the requests a second of the service and of bare net/http over the number of connections.
func chart(series [2][]float64) string {
	const left, right, top, bottom = 90, 700, 90, 280
	highest := slices.Max(append(series[0], series[1]...))
	step := 10000.0
	for highest/step > 6 {
		step *= 2
	}
	highest = step * float64(int(highest/step)+1)
	x := func(i int) float64 { return left + float64(i)*(right-left)/float64(len(levels)-1) }
	y := func(rate float64) float64 { return bottom - rate/highest*(bottom-top) }

	var svg strings.Builder
	svg.WriteString(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 790 340" font-family="system-ui, sans-serif" font-size="14">
<title>Requests a second over connections</title>
<style>text{fill:#1f2328}.line{stroke:#d1d9e0}.panel{fill:#ffffff}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.line{stroke:#3d444d}.panel{fill:#0d1117}}</style>
<rect class="panel" width="790" height="340" rx="6"/>
<text x="90" y="32" font-size="16" font-weight="600">/health: requests a second over connections</text>
`)
	for rate := 0.0; rate <= highest; rate += step {
		fmt.Fprintf(&svg, `<line class="line" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text x="%d" y="%.1f" text-anchor="end">%.0f</text>`+"\n",
			left, right, y(rate), y(rate), left-10, y(rate)+5, rate)
	}
	for i, level := range levels {
		fmt.Fprintf(&svg, `<text x="%.1f" y="%d" text-anchor="middle">%d</text>`+"\n", x(i), bottom+24, level)
	}
	fmt.Fprintf(&svg, `<text x="%d" y="%d" text-anchor="middle">connections</text>`+"\n", (left+right)/2, bottom+46)
	for s, line := range []struct{ name, color string }{{"service", "#1a7f37"}, {"bare net/http", "#8250df"}} {
		var points []string
		for i, rate := range series[s] {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(i), y(rate)))
		}
		fmt.Fprintf(&svg, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2.5"/>`+"\n", strings.Join(points, " "), line.color)
		fmt.Fprintf(&svg, `<rect x="%d" y="54" width="10" height="10" fill="%s"/><text x="%d" y="64">%s</text>`+"\n", left+130*s, line.color, left+130*s+18, line.name)
	}
	svg.WriteString("</svg>\n")
	return svg.String()
}
