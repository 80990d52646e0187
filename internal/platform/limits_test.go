package platform

import (
	"fmt"
	"io/fs"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/fstest"
)

const (
	groupsV1  = "11:memory:/docker/abc\n4:cpuacct,cpu:/docker/abc\n1:name=systemd:/docker/abc\n0::/docker/abc\n"
	noLimitV1 = "9223372036854771712\n"
)

func TestReadLimits(t *testing.T) {
	t.Parallel()
	if got := ReadLimits(fstest.MapFS{}); got.CPUs != nil || got.Memory != nil {
		t.Errorf("without files: got %s CPUs, %s bytes", show(got.CPUs), show(got.Memory))
	}
	const v2, cpu, memory = "sys/fs/cgroup/", "sys/fs/cgroup/cpu/", "sys/fs/cgroup/memory/"
	type files map[string]string
	for name, test := range map[string]struct {
		groups string // of the process
		files  files
		want   string // CPUs and bytes
	}{
		"version 2, in a container": {"0::/\n", files{
			v2 + "cpu.max": "50000 100000\n", v2 + "memory.max": "67108864\n",
		}, "0.5 67108864"},
		"version 2, unlimited": {"0::/\n", files{
			v2 + "cpu.max": "max 100000\n", v2 + "memory.max": "max\n",
		}, "- -"},
		"version 2, nested, each limit elsewhere": {"0::/kube/pod/app\n", files{
			v2 + "kube/cpu.max": "400000 100000\n", v2 + "kube/memory.max": "2000000\n",
			v2 + "kube/pod/cpu.max": "150000 100000\n", v2 + "kube/pod/memory.max": "max\n",
			v2 + "kube/pod/app/cpu.max": "max 100000\n", v2 + "kube/pod/app/memory.max": "1000000\n",
			v2 + "other/cpu.max": "1000 100000\n",
		}, "1.5 1000000"},
		"version 2, group outside the mount": {"0::/../../elsewhere\n", files{
			v2 + "cpu.max": "25000 100000\n", "sys/elsewhere/memory.max": "5\n",
		}, "0.25 -"},
		"version 2, dots in a name": {"0::/a..b\n", files{v2 + "a..b/memory.max": "1\n"}, "- 1"},
		"version 2, garbage": {"0::/a/b\n", files{
			v2 + "a/b/cpu.max": "1 2 3\n", v2 + "a/b/memory.max": "-5\n",
			v2 + "a/cpu.max": "\x00\xff", v2 + "a/memory.max": "99999999999999999999\n",
			v2 + "cpu.max": "50000 0\n", v2 + "memory.max": "",
		}, "- -"},
		"version 1, in a container": {groupsV1, files{
			cpu + "cpu.cfs_quota_us": "50000\n", cpu + "cpu.cfs_period_us": "100000\n",
			memory + "memory.limit_in_bytes": "67108864\n",
		}, "0.5 67108864"},
		"version 1, unlimited": {groupsV1, files{
			cpu + "cpu.cfs_quota_us": "-1\n", cpu + "cpu.cfs_period_us": "100000\n",
			memory + "memory.limit_in_bytes": noLimitV1,
		}, "- -"},
		"version 1, nested": {"11:memory:/a/b\n4:cpu,cpuacct:/a/b\n", files{
			cpu + "a/cpu.cfs_quota_us": "120000\n", cpu + "a/cpu.cfs_period_us": "100000\n",
			cpu + "a/b/cpu.cfs_quota_us": "800000\n", cpu + "a/b/cpu.cfs_period_us": "400000\n",
			memory + "memory.limit_in_bytes":   noLimitV1,
			memory + "a/memory.limit_in_bytes": "2000\n", memory + "a/b/memory.limit_in_bytes": "3000\n",
		}, "1.2 2000"},
		"both versions at once": {groupsV1, files{
			v2 + "docker/abc/cpu.max": "100000 100000\n", memory + "memory.limit_in_bytes": "5000\n",
		}, "1 5000"},
		"nonsense": {"0\n::\n0::\n:cpu:/\n:../../..:/\n\xff", files{"memory.max": "x\n"}, "- -"},
	} {
		t.Run(name, func(t *testing.T) {
			limits := ReadLimits(tree(test.groups, test.files))
			if got := show(limits.CPUs) + " " + show(limits.Memory); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// tree is a root directory with the process's control groups and other files.
func tree(groups string, files map[string]string) fs.FS {
	root := fstest.MapFS{"proc/self/cgroup": {Data: []byte(groups)}}
	for path, text := range files {
		root[path] = &fstest.MapFile{Data: []byte(text)}
	}
	return root
}

// show is the value of a limit, or a dash.
func show[T int64 | float64](limit *T) string {
	if limit == nil {
		return "-"
	}
	return fmt.Sprint(*limit)
}

func TestTuneRuntime(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	memory := int64(32 << 20)
	for _, want := range []int64{18 << 20, 1 << 40} { // the second is kept
		debug.SetMemoryLimit(1 << 40)
		Limits{Memory: &memory}.TuneRuntime(true, want == 1<<40)
		if got := debug.SetMemoryLimit(-1); got != want {
			t.Errorf("a limit of 32 MiB: got %d bytes for the Go runtime, want %d", got, want)
		}
	}
	for cpus, want := range map[float64]int{0.1: 1, 1: 1, 1.01: 2, 2.5: 3, 8: 8, 1e15: 8} {
		for _, keep := range []bool{false, true} {
			runtime.GOMAXPROCS(8)
			if keep {
				want = 8
			}
			Limits{CPUs: &cpus}.TuneRuntime(keep, true)
			if got := runtime.GOMAXPROCS(0); got != want {
				t.Errorf("a limit of %v CPUs, kept %t: got %d threads of 8, want %d", cpus, keep, got, want)
			}
		}
	}
}

// FuzzLimits reads any content of the files. ReadLimits must neither panic nor return a limit that is
// not positive.
func FuzzLimits(f *testing.F) {
	f.Add("0::/a/b\n", "50000 100000\n")
	f.Add("4:cpu,cpuacct:/a\n", "-1\n")
	f.Add("11:memory:/../x\n", noLimitV1)
	f.Fuzz(func(t *testing.T, groups, value string) {
		files := map[string]string{}
		for _, name := range []string{
			"cpu.max", "memory.max", "a/cpu.max", "a/memory.max", "memory/memory.limit_in_bytes",
			"cpu/a/cpu.cfs_quota_us", "cpu/a/cpu.cfs_period_us",
		} {
			files["sys/fs/cgroup/"+name] = value
		}
		got := ReadLimits(tree(groups, files))
		if got.CPUs != nil && !(*got.CPUs > 0) || got.Memory != nil && *got.Memory <= 0 {
			t.Errorf("got %s CPUs, %s bytes", show(got.CPUs), show(got.Memory))
		}
	})
}
