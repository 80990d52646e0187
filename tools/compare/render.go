package main

import (
	_ "embed"
	"fmt"
	"reflect"
	"strings"
	"text/template"
	"unicode/utf8"
)

// comparison has the figures whose field has the tag, which is their label. It returns the lines of
// a table, the heading first, as the other tables do.
func comparison(r *report, tag string) [][]string {
	lines := [][]string{{"", "single-stage", "multi-stage", "scratch"}}
	for i, field := range reflect.VisibleFields(reflect.TypeOf(figures{})) {
		label := field.Tag.Get(tag)
		if label == "" {
			continue
		}
		line := []string{label}
		for _, kind := range kinds {
			value := reflect.Indirect(reflect.ValueOf(*r.Images[kind]).Field(i))
			shown := "n/a" // for a nil pointer
			if value.IsValid() {
				shown = fmt.Sprint(value)
			}
			line = append(line, shown)
		}
		lines = append(lines, line)
	}
	return lines
}

func layerTable(r *report) [][]string {
	lines := [][]string{{"layers, by what made them", "download", "again after a change of one line"}}
	for _, kind := range kinds {
		for _, l := range r.Images[kind].Layers {
			again := map[bool]string{true: "no", false: "yes"}[l.Shared]
			made := fmt.Sprintf("%s: %.60s", kind, strings.ReplaceAll(l.CreatedBy, "|", `\|`))
			lines = append(lines, []string{made, l.Compressed.String(), again})
		}
	}
	return lines
}

func claimTable(r *report) [][]string {
	lines := [][]string{{"claim", "measured", "result"}}
	for _, c := range r.Claims {
		lines = append(lines, []string{c.Image + ": " + c.Label, c.Measured, c.Result})
	}
	return lines
}

// table writes a table as Markdown, with its columns aligned, so that it can be read as text too.
func table(lines [][]string) string {
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, value := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(value))
		}
	}
	var b strings.Builder
	for i, line := range lines {
		fmt.Fprintf(&b, "| %-*s |", widths[0], line[0])
		for j, value := range line[1:] {
			fmt.Fprintf(&b, " %*s |", widths[j+1], value)
		}
		b.WriteString("\n")
		if i == 0 {
			b.WriteString("| " + strings.Repeat("-", widths[0]) + " |")
			for _, width := range widths[1:] {
				b.WriteString(" " + strings.Repeat("-", width-1) + ": |")
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

// text has every figure, and what is claimed.
func text(r *report) string {
	return table(comparison(r, "row")) + "\n" + table(layerTable(r)) + "\n" + table(claimTable(r)) + "\n" +
		fmt.Sprintf("Measured %s, engine %s, %d CPUs; %s.\n", r.Date, r.Engine, r.CPUs, r.Version)
}

//go:embed chart.svg.tmpl
var chartTemplate string

// bar is an image in the chart, and part is one kind of its bytes. X, Width and End are in the units
// of the chart's viewBox.
type bar struct {
	*figures
	Parts []part
	End   int
}

type part struct {
	Name, Colour string
	Size         size
	X, Width     int
}

// chart draws, as SVG, a bar for each image, stacked by what its bytes are.
func chart(r *report) (string, error) {
	const left, longest = 190, 440
	bars := map[string]bar{}
	for _, kind := range kinds {
		f := r.Images[kind]
		b := bar{figures: f, End: left}
		// The colours are told apart by readers who do not see red or green, and carry white text.
		for _, p := range []part{
			{Name: "base image", Colour: "#6e7781", Size: f.Base},
			{Name: "Go toolchain", Colour: "#0969da", Size: f.Toolchain},
			{Name: "Go build cache", Colour: "#9a6700", Size: f.BuildCache},
			{Name: "the service", Colour: "#1a7f37", Size: f.Binary},
		} {
			p.X, p.Width = b.End, int(longest*p.Size/r.Images[single].Unpacked)
			b.Parts = append(b.Parts, p)
			b.End += p.Width
		}
		bars[kind] = b
	}
	var drawn strings.Builder
	err := template.Must(template.New("chart").Parse(chartTemplate)).Execute(&drawn, bars)
	return drawn.String(), err
}
