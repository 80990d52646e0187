package main

import (
	"fmt"
	"io"
	"text/template"
)

// The chart's measures, in the units of its viewBox, which are pixels in a README.
const (
	barLeft   = 190
	barWidth  = 440 // of the largest image
	barHeight = 34
	firstBar  = 70
	barStep   = 56
	minInside = 90 // width of a part that has room for its size inside
)

// part is one piece of a bar: a kind of bytes.
type part struct {
	name   string
	colour string
	bytes  func(*figures) int64
}

// The colours are told apart by readers who do not see red or green, and carry white text.
var parts = []part{
	{"base image", "#6e7781", func(f *figures) int64 { return f.Base }},
	{"Go toolchain", "#0969da", func(f *figures) int64 { return f.Toolchain }},
	{"Go build cache", "#9a6700", func(f *figures) int64 { return f.BuildCache }},
	{"the service", "#1a7f37", func(f *figures) int64 { return f.Binary }},
}

// The panel behind the text changes together with the text, so that the chart can be read where a
// viewer ignores the media query too.
var chart = template.Must(template.New("chart").Parse(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 830 {{.Height}}" width="830" height="{{.Height}}" role="img" aria-labelledby="title">
<title id="title">{{.Title}}</title>
<style>
  text { font: 14px -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; fill: #1f2328; }
  .panel { fill: #f6f8fa; stroke: #d0d7de; }
  .strong { font-weight: 600; }
  .inside { fill: #ffffff; text-anchor: middle; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .panel { fill: #161b22; stroke: #30363d; }
    .inside { fill: #ffffff; }
  }
</style>
<rect class="panel" x="0.5" y="0.5" width="829" height="{{.Border}}" rx="6"/>
<text class="strong" x="20" y="34" style="font-size: 17px">{{.Title}}</text>
{{- range .Rects}}
<rect x="{{printf "%.1f" .X}}" y="{{.Y}}" width="{{printf "%.1f" .Width}}" height="{{.Height}}" fill="{{.Colour}}"/>
{{- end}}
{{- range .Texts}}
<text class="{{.Class}}" x="{{printf "%.1f" .X}}" y="{{.Y}}">{{.Text}}</text>
{{- end}}
</svg>
`))

type rect struct {
	X, Width  float64
	Y, Height int
	Colour    string
}

type text struct {
	X           float64
	Y           int
	Class, Text string
}

// writeSVG draws a bar for each image, stacked by what its bytes are.
func writeSVG(w io.Writer, r *report) error {
	var rects []rect
	var texts []text
	whole := float64(r.Images[single].Unpacked)
	for i, kind := range kinds {
		f := r.Images[kind]
		top := firstBar - 14 + i*barStep
		x := float64(barLeft)
		texts = append(texts, text{20, top + 22, "", titles[kind]})
		for _, p := range parts {
			n := p.bytes(f)
			width := float64(n) / whole * barWidth
			rects = append(rects, rect{x, width, top, barHeight, p.colour})
			if width >= minInside {
				texts = append(texts, text{x + width/2, top + 22, "inside", megabytes(n)})
			}
			x += width
		}
		texts = append(texts, text{x + 10, top + 22, "strong", megabytes(f.Unpacked)})
		if kind != single {
			texts = append(texts, text{x + 95, top + 22, "strong", fmt.Sprintf("%.1f : 1", whole/float64(f.Unpacked))})
			note := "the service " + megabytes(f.Binary)
			if f.Base > 100e3 {
				note = "base image " + megabytes(f.Base) + ", " + note
			}
			texts = append(texts, text{x + 180, top + 22, "", note})
		}
	}
	legend := firstBar + len(kinds)*barStep
	for i, p := range parts {
		x := float64(20 + i*150)
		rects = append(rects, rect{x, 14, legend - 12, 14, p.colour})
		texts = append(texts, text{x + 22, legend, "", p.name})
	}
	height := legend + 24
	return chart.Execute(w, map[string]any{
		"Title": "Unpacked size of the three images, by what the bytes are",
		"Rects": rects, "Texts": texts, "Height": height, "Border": height - 1,
	})
}
