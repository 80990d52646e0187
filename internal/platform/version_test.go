package platform

import (
	"regexp"
	"runtime"
	"testing"
	"testing/fstest"
)

func TestPrettyName(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ release, want string }{
		"in double quotes": {"NAME=x\nPRETTY_NAME=\"Alpine Linux v3.19\"\nID=alpine\n", "Alpine Linux v3.19"},
		"in single quotes": {"PRETTY_NAME='Some OS 1'", "Some OS 1"},
		"without quotes":   {"PRETTY_NAME=Plain\r\n", "Plain"},
		"with escapes":     {`PRETTY_NAME="The \"Best\" \$5 OS \\"`, `The "Best" $5 OS \`},
		"empty":            {"PRETTY_NAME=\"\"\n", ""},
		"half a quotation": {"PRETTY_NAME=\"", `"`},
		"no such name":     {"OTHER_PRETTY_NAME=x\n\xff\x00", ""},
	} {
		root := fstest.MapFS{"etc/os-release": {Data: []byte(test.release)}}
		if got := prettyName(root); got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	want := map[string]string{
		"linux": `^Plain$`, "darwin": `^macOS \d+\.`, "windows": `^Microsoft Windows .*\d\.\d`,
		"freebsd": `^FreeBSD \d+\.`, "openbsd": `^OpenBSD \d+\.`, "netbsd": `^NetBSD \d+\.`,
	}[runtime.GOOS] // elsewhere anything
	got := Version(fstest.MapFS{"etc/os-release": {Data: []byte("PRETTY_NAME=Plain\n")}})
	if !regexp.MustCompile(want).MatchString(got) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Version(fstest.MapFS{}); got == "" || runtime.GOOS == "linux" && got != "linux" {
		t.Errorf("without a file: got %q, want the system's name", got)
	}
	if got := output("no-such-command"); got != "" {
		t.Errorf("got %q from a command that is missing", got)
	}
}
