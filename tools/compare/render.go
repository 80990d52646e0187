package main

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/tabwriter"
	"unicode/utf8"
)

// comparison is how a row's value is compared between two images.
type comparison int

const (
	asText    comparison = iota // the same or not
	asCount                     // by their difference
	asRatio                     // by their ratio
	asNothing                   // one that is not available
)

const (
	maxListed    = 4    // folders that are named; more are only counted
	maxCreatedBy = 60   // characters of an instruction in a table of layers
	maxRatio     = 1000 // above, the difference says more
)

// cell is one value in a table.
type cell struct {
	text       string
	number     float64
	comparison comparison
	format     func(float64) string // of a difference
}

func megabytes(n int64) string { return formatBytes(float64(n)) }

func formatBytes(n float64) string {
	if n != 0 && n < 100e3 && n > -100e3 {
		return fmt.Sprintf("%.0f B", n)
	}
	return fmt.Sprintf("%.2f MB", n/1e6)
}

func bytesCell(n int64) cell { return cell{megabytes(n), float64(n), asRatio, formatBytes} }
func secondsCell(s float64) cell {
	return cell{fmt.Sprintf("%.2f s", s), s, asRatio, func(n float64) string { return fmt.Sprintf("%.2f s", n) }}
}
func countCell(n int) cell {
	return cell{fmt.Sprint(n), float64(n), asCount, func(n float64) string { return fmt.Sprintf("%.0f", n) }}
}
func textCell(s string) cell { return cell{text: s, comparison: asText} }
func listCell(names []string) cell {
	return textCell(list(names))
}

var missingCell = cell{text: notAvailable, comparison: asNothing}

func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, " ")
}

func shortHash(digest string) string { return fmt.Sprintf("%.12s", digest) }

// against compares the single-stage image's value with another image's.
func (c cell) against(other cell) string {
	switch {
	case c.comparison == asNothing || other.comparison == asNothing:
		return ""
	case c.comparison == asText && c.text != other.text:
		return ""
	case c.comparison == asText || c.number == other.number && c.comparison == asCount || c.number == 0 && other.number == 0:
		return "same"
	case c.comparison == asCount || c.number > maxRatio*other.number:
		return c.format(other.number - c.number)
	}
	return fmt.Sprintf("%.1f : 1", c.number/other.number)
}

// row is one measurement of all images.
type row struct {
	label string // with two spaces in front where it is a part of the row above
	value func(*figures) cell
}

var rows = []row{
	{"unpacked: files in docker export", func(f *figures) cell { return bytesCell(f.Unpacked) }},
	{"  base image and the rest", func(f *figures) cell { return bytesCell(f.Base) }},
	{"  Go toolchain", func(f *figures) cell { return bytesCell(f.Toolchain) }},
	{"  Go build cache", func(f *figures) cell { return bytesCell(f.BuildCache) }},
	{"  the service's binary", func(f *figures) cell { return bytesCell(f.Binary) }},
	{"  all of it without the build cache", func(f *figures) cell { return bytesCell(f.WithoutCache) }},
	{"docker export | wc -c", func(f *figures) cell { return bytesCell(f.Exported) }},
	{"the engine's own .Size", func(f *figures) cell { return bytesCell(f.EngineSize) }},
	{"sha256 of the binary", func(f *figures) cell { return textCell(shortHash(f.SHA256)) }},
	{"linked", func(f *figures) cell { return textCell(f.Linkage) }},
	{"  saved in it by -s -w", func(f *figures) cell { return bytesCell(f.Stripped) }},
	{"apk packages", func(f *figures) cell {
		if f.Packages == nil {
			return missingCell
		}
		return countCell(*f.Packages)
	}},
	{"executable files", func(f *figures) cell { return countCell(f.Executables) }},
	{"setuid or setgid files", func(f *figures) cell { return countCell(f.SetID) }},
	{"shells", func(f *figures) cell { return listCell(f.Shells) }},
	{"Go, C compiler, make, git", func(f *figures) cell { return listCell(f.Tools) }},
	{"package manager", func(f *figures) cell { return listCell(f.Managers) }},
	{"CA certificates", func(f *figures) cell { return countCell(f.Certificates) }},
	{"user (uid)", func(f *figures) cell { return textCell(fmt.Sprintf("%s (%d)", f.User, f.UID)) }},
	{"folders that user can write", func(f *figures) cell {
		if f.WritableCount > maxListed {
			return textCell(fmt.Sprintf("%d folders", f.WritableCount))
		}
		return listCell(f.Writable)
	}},
	{"download: its layers, gzip", func(f *figures) cell { return bytesCell(f.Download) }},
	{"  at 100 Mbit/s (computed)", func(f *figures) cell { return secondsCell(f.DownloadTime) }},
	{"  again after a change of one line", func(f *figures) cell { return bytesCell(f.ChangeDownload) }},
	{"docker run to first 200 of /health", func(f *figures) cell { return secondsCell(f.Start) }},
	{"memory then, by docker stats", func(f *figures) cell { return bytesCell(f.Memory) }},
	{"  RssAnon + RssFile of the process", func(f *figures) cell {
		if f.Resident == nil {
			return missingCell
		}
		return bytesCell(*f.Resident)
	}},
	{"build, nothing cached", func(f *figures) cell { return secondsCell(f.BuildCold) }},
	{"build after a change of one line", func(f *figures) cell { return secondsCell(f.BuildChange) }},
}

// titles are the names of the kinds for a reader.
var titles = map[string]string{
	single:  "single-stage",
	multi:   "multi-stage on Alpine",
	scratch: "multi-stage on scratch",
}

// comparisonTable returns the lines of the main table, the heading first.
func comparisonTable(r *report) [][]string {
	table := [][]string{{"", single, multi, scratch, "single : multi", "single : scratch"}}
	for _, row := range rows {
		s, m, c := row.value(r.Images[single]), row.value(r.Images[multi]), row.value(r.Images[scratch])
		table = append(table, []string{row.label, s.text, m.text, c.text, s.against(m), s.against(c)})
	}
	return table
}

// layerTable returns the lines of one image's table of layers, the heading first.
func layerTable(kind string, f *figures) [][]string {
	table := [][]string{{"layers of " + kind + ", made by", "unpacked", "gzip", "after a change of one line"}}
	for _, l := range f.Layers {
		state := "new"
		if l.Shared {
			state = "shared"
		}
		table = append(table, []string{shortInstruction(l.CreatedBy), megabytes(l.Uncompressed), megabytes(l.Compressed), state})
	}
	return table
}

// claimTable returns the lines of the table of claims, the heading first.
func claimTable(r *report) [][]string {
	table := [][]string{{"claim", "measured", "result"}}
	for _, c := range r.Claims {
		result := "FAIL"
		if c.Holds {
			result = "pass"
		}
		table = append(table, []string{c.Image + ": " + c.Label, c.Measured, result})
	}
	return table
}

// What the engine adds to an instruction: its shell with the build arguments, and a comment.
var addedByEngine = regexp.MustCompile(`(\|\d+ .*)?/bin/sh -c (#\(nop\)\s*)?|\s*# buildkit$`)

// shortInstruction is the instruction as it stands in the Dockerfile, on one line.
func shortInstruction(createdBy string) string {
	line := strings.Join(strings.Fields(addedByEngine.ReplaceAllString(createdBy, "")), " ")
	if utf8.RuneCountInString(line) > maxCreatedBy {
		line = string([]rune(line)[:maxCreatedBy-1]) + "…"
	}
	return line
}

func measuredOn(r *report) string {
	return fmt.Sprintf("Measured %s, engine %s, %d x %s; %s.", r.Date, r.Engine, r.CPUs, r.Processor, r.Version)
}

func tables(r *report) [][][]string {
	all := [][][]string{comparisonTable(r)}
	for _, kind := range kinds {
		all = append(all, layerTable(kind, r.Images[kind]))
	}
	return append(all, claimTable(r))
}

func writeText(w io.Writer, r *report) error {
	for _, table := range tables(r) {
		// The first column is aligned to the left by spaces, because tabwriter aligns all columns alike.
		width := 0
		for _, line := range table {
			width = max(width, utf8.RuneCountInString(line[0]))
		}
		columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		for _, line := range table {
			fmt.Fprintf(columns, "%-*s\t%s\t\n", width, line[0], strings.Join(line[1:], "\t"))
		}
		if err := columns.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	_, err := fmt.Fprintln(w, measuredOn(r))
	return err
}

func writeMarkdown(w io.Writer, r *report) error {
	escape := func(s string) string {
		indented := strings.HasPrefix(s, "  ")
		s = strings.NewReplacer("|", `\|`, "<", "&lt;", "*", `\*`, "_", `\_`).Replace(strings.TrimSpace(s))
		if indented {
			return "&emsp;" + s
		}
		return s
	}
	for _, table := range tables(r) {
		for i, line := range table {
			fmt.Fprint(w, "|")
			for _, value := range line {
				fmt.Fprintf(w, " %s |", escape(value))
			}
			fmt.Fprintln(w)
			if i == 0 {
				fmt.Fprintln(w, "| --- |"+strings.Repeat(" ---: |", len(line)-1))
			}
		}
		fmt.Fprintln(w)
	}
	for _, sentence := range findings(r) {
		fmt.Fprintf(w, "- %s\n", sentence)
	}
	_, err := fmt.Fprintf(w, "\n%s\n", measuredOn(r))
	return err
}

// findings are the sentences that have figures in them.
func findings(r *report) []string {
	s, m, c := r.Images[single], r.Images[multi], r.Images[scratch]
	percent := func(part, whole int64) float64 { return 100 * float64(part) / float64(whole) }
	ratio := func(a, b int64) float64 { return float64(a) / float64(b) }
	return []string{
		fmt.Sprintf("The single-stage image is %.0f %% toolchain and %.0f %% build cache. Without the build cache it would still be %.1f times as large as the multi-stage image.",
			percent(s.Toolchain, s.Unpacked), percent(s.BuildCache, s.Unpacked), ratio(s.WithoutCache, m.Unpacked)),
		fmt.Sprintf("After a change of one line, a second pull costs %s of %s for the single-stage image, %s of %s for multi-stage on Alpine, and %s of %s for multi-stage on scratch.",
			megabytes(s.ChangeDownload), megabytes(s.Download), megabytes(m.ChangeDownload), megabytes(m.Download), megabytes(c.ChangeDownload), megabytes(c.Download)),
		fmt.Sprintf("The unpacked ratio of %.1f : 1 is %.1f : 1 for the download.", ratio(s.Unpacked, m.Unpacked), ratio(s.Download, m.Download)),
		fmt.Sprintf("The flags -s -w make the binary %.0f %% smaller.", percent(m.Stripped, m.Binary+m.Stripped)),
		fmt.Sprintf("Alpine is %s of the %s of the multi-stage image. On scratch, the image is %s.", megabytes(m.Base), megabytes(m.Unpacked), megabytes(c.Unpacked)),
	}
}

func writeJSON(w io.Writer, r *report) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}
