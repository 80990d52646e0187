// Package test checks the rules of the house that no other package's tests can.
package test

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"devops-info-service/test/harness"
)

// topLevel is all that the repository's top folder holds, beside dot files and bin/.
var topLevel = []string{
	"Dockerfile", "Dockerfile.single", "Makefile", "README.md",
	"deploy/", "docs/",
	"go.mod", "handlers.go", "handlers_test.go",
	"internal/",
	"main.go",
	"test/", "tools/",
}

// differences lists what names has beyond topLevel and what it lacks.
func differences(names []string) (extra, missing []string) {
	allowed, found := map[string]bool{}, map[string]bool{}
	for _, name := range topLevel {
		allowed[name] = true
	}
	for _, name := range names {
		found[name] = true
		if !allowed[name] && name != "bin/" && !strings.HasPrefix(name, ".") {
			extra = append(extra, name)
		}
	}
	for _, name := range topLevel {
		if !found[name] {
			missing = append(missing, name)
		}
	}
	return extra, missing
}

func TestTopLevelHoldsWhatTheDesignNames(t *testing.T) {
	entries, err := os.ReadDir(harness.Root(t))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		name := entry.Name()
		if entry.IsDir() {
			name += "/"
		}
		names = append(names, name)
	}
	extra, missing := differences(names)
	if len(extra) > 0 {
		t.Errorf("the top level has %v, want these in a folder", extra)
	}
	if len(missing) > 0 {
		t.Errorf("the top level lacks %v", missing)
	}
}

func TestTopLevelRuleCanFail(t *testing.T) {
	without := topLevel[1:]
	with := func(more ...string) []string { return append(append([]string{}, topLevel...), more...) }
	for name, test := range map[string]struct {
		names          []string
		extra, missing []string
	}{
		"as it should be":      {topLevel, nil, nil},
		"dot files and bin":    {with(".git/", ".ci/", ".gitignore", "bin/"), nil, nil},
		"another source file":  {with("server.go"), []string{"server.go"}, nil},
		"another folder":       {with("scripts/"), []string{"scripts/"}, nil},
		"a file for a folder":  {with("bin"), []string{"bin"}, nil},
		"without a Dockerfile": {without, nil, []string{"Dockerfile"}},
	} {
		t.Run(name, func(t *testing.T) {
			extra, missing := differences(test.names)
			if !reflect.DeepEqual(extra, test.extra) || !reflect.DeepEqual(missing, test.missing) {
				t.Errorf("got %v and %v, want %v and %v", extra, missing, test.extra, test.missing)
			}
		})
	}
}
