package platform

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
)

const (
	mountV2        = "31 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	mountV1CPU     = "33 24 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n"
	mountV1Memory  = "36 24 0:32 / /sys/fs/cgroup/memory rw shared:13 - cgroup cgroup rw,memory\n"
	mountContainer = "716 710 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro master:10 - cgroup cgroup rw,cpu,cpuacct\n" +
		"719 710 0:32 /docker/abc /sys/fs/cgroup/memory ro master:13 - cgroup cgroup rw,memory\n"
	noLimitV1 = "9223372036854771712\n"
)

func TestReadLimits(t *testing.T) {
	t.Parallel()
	const v2, cpu, memory = "sys/fs/cgroup/", "sys/fs/cgroup/cpu,cpuacct/", "sys/fs/cgroup/memory/"
	for name, test := range map[string]struct {
		files map[string]string
		want  string // CPUs and bytes
	}{
		"no files": {nil, "- -"},
		"version 2, in a container": {map[string]string{
			"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mountV2,
			v2 + "cpu.max": "50000 100000\n", v2 + "memory.max": "67108864\n",
		}, "0.5 67108864"},
		"version 2, unlimited": {map[string]string{
			"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mountV2,
			v2 + "cpu.max": "max 100000\n", v2 + "memory.max": "max\n",
		}, "- -"},
		"version 2, nested, each limit elsewhere": {map[string]string{
			"proc/self/cgroup": "0::/kube/pod/app\n", "proc/self/mountinfo": mountV2,
			v2 + "kube/cpu.max": "400000 100000\n", v2 + "kube/memory.max": "1000000\n",
			v2 + "kube/pod/cpu.max": "150000 100000\n", v2 + "kube/pod/memory.max": "max\n",
			v2 + "kube/pod/app/cpu.max": "max 100000\n", v2 + "kube/pod/app/memory.max": "2000000\n",
			v2 + "other/cpu.max": "1000 100000\n",
		}, "1.5 1000000"},
		"version 2, own group mounted as root": {map[string]string{
			"proc/self/cgroup":    "0::/system.slice/docker-abc.scope\n",
			"proc/self/mountinfo": strings.Replace(mountV2, " / /sys", " /system.slice/docker-abc.scope /sys", 1),
			v2 + "cpu.max":        "200000 100000\n", v2 + "memory.max": "1\n",
		}, "2 1"},
		"version 2, group outside the mount": {map[string]string{
			"proc/self/cgroup": "0::/../../elsewhere\n", "proc/self/mountinfo": mountV2,
			v2 + "cpu.max": "25000 100000\n",
		}, "0.25 -"},
		"version 2, a group whose name begins like the mount's": {map[string]string{
			"proc/self/cgroup": "0::/ab\n", "proc/self/mountinfo": strings.Replace(mountV2, " / /sys", " /a /sys", 1),
			v2 + "b/memory.max": "5\n", v2 + "memory.max": "7\n",
		}, "- 7"},
		"version 2, dots in a name": {map[string]string{
			"proc/self/cgroup": "0::/a..b\n", "proc/self/mountinfo": mountV2, v2 + "a..b/memory.max": "5\n",
		}, "- 5"},
		"version 2, the second of two mounts": {map[string]string{
			"proc/self/cgroup":    "0::/app\n",
			"proc/self/mountinfo": strings.Replace(mountV2, " / /sys/fs/cgroup ", " /other /mnt ", 1) + mountV2,
			v2 + "app/memory.max": "5\n",
			"mnt/app/memory.max":  "3\n",
		}, "- 5"},
		"version 2, garbage": {map[string]string{
			"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mountV2,
			v2 + "cpu.max": "lots of it\n", v2 + "memory.max": "-5\n",
		}, "- -"},
		"version 2, garbage below a limit": {map[string]string{
			"proc/self/cgroup": "0::/app\n", "proc/self/mountinfo": mountV2,
			v2 + "app/cpu.max": "\x00\xff", v2 + "app/memory.max": "99999999999999999999\n",
			v2 + "cpu.max": "300000 100000\n", v2 + "memory.max": "4096\n",
		}, "3 4096"},
		"version 2, no period": {map[string]string{
			"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mountV2,
			v2 + "cpu.max": "50000 0\n", v2 + "memory.max": "",
		}, "- -"},
		"version 1, in a container": {map[string]string{
			"proc/self/cgroup":       "11:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/docker/abc\n",
			"proc/self/mountinfo":    mountContainer,
			cpu + "cpu.cfs_quota_us": "50000\n", cpu + "cpu.cfs_period_us": "100000\n",
			memory + "memory.limit_in_bytes": "67108864\n",
		}, "0.5 67108864"},
		"version 1, unlimited": {map[string]string{
			"proc/self/cgroup": "11:memory:/\n4:cpu,cpuacct:/\n", "proc/self/mountinfo": mountV1CPU + mountV1Memory,
			cpu + "cpu.cfs_quota_us": "-1\n", cpu + "cpu.cfs_period_us": "100000\n",
			memory + "memory.limit_in_bytes": noLimitV1,
		}, "- -"},
		"version 1, nested": {map[string]string{
			"proc/self/cgroup": "11:memory:/a/b\n4:cpu,cpuacct:/a/b\n", "proc/self/mountinfo": mountV1CPU + mountV1Memory,
			cpu + "a/cpu.cfs_quota_us": "120000\n", cpu + "a/cpu.cfs_period_us": "100000\n",
			cpu + "a/b/cpu.cfs_quota_us": "800000\n", cpu + "a/b/cpu.cfs_period_us": "400000\n",
			memory + "memory.limit_in_bytes": noLimitV1, memory + "a/memory.limit_in_bytes": "2000\n", memory + "a/b/memory.limit_in_bytes": "3000\n",
		}, "1.2 2000"},
		"both versions at once": {map[string]string{
			"proc/self/cgroup":        "11:memory:/docker/abc\n0::/docker/abc\n",
			"proc/self/mountinfo":     mountV2 + mountContainer,
			v2 + "docker/abc/cpu.max": "100000 100000\n", memory + "memory.limit_in_bytes": "5000\n",
		}, "1 5000"},
		"nonsense for files": {map[string]string{
			"proc/self/cgroup": "0\n::\n0::\n:cpu:/\n\xff", "proc/self/mountinfo": " - \n1 2 3 4 5 - \n- cgroup2 a b\n",
		}, "- -"},
	} {
		t.Run(name, func(t *testing.T) {
			tree := fstest.MapFS{}
			for path, text := range test.files {
				tree[path] = &fstest.MapFile{Data: []byte(text)}
			}
			limits := ReadLimits(tree)
			if got := show(limits.CPUs) + " " + show(limits.Memory); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// show is the value of a limit, or a dash.
func show[T int64 | float64](limit *T) string {
	if limit == nil {
		return "-"
	}
	return fmt.Sprint(*limit)
}

func TestMaxProcs(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		cpus          float64 // 0: no limit
		current, want int
	}{
		{0, 8, 8}, {0.1, 8, 1}, {1, 8, 1}, {1.01, 8, 2}, {2.5, 8, 3}, {8, 8, 8}, {64, 8, 8}, {0.5, 1, 1},
	} {
		t.Run(fmt.Sprintf("%v CPUs of %d", test.cpus, test.current), func(t *testing.T) {
			var limits Limits
			if test.cpus > 0 {
				limits.CPUs = &test.cpus
			}
			if got := limits.MaxProcs(test.current); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

// FuzzLimits reads any content of the files. ReadLimits must neither panic nor return a limit that is
// not positive.
func FuzzLimits(f *testing.F) {
	f.Add("0::/a/b\n", mountV2, "50000 100000\n")
	f.Add("4:cpu,cpuacct:/a\n", mountV1CPU, "-1\n")
	f.Add("11:memory:/../x\n", mountV1Memory, noLimitV1)
	f.Fuzz(func(t *testing.T, groups, mounts, value string) {
		tree := fstest.MapFS{
			"proc/self/cgroup":    {Data: []byte(groups)},
			"proc/self/mountinfo": {Data: []byte(mounts)},
		}
		for _, folder := range []string{"sys/fs/cgroup/", "sys/fs/cgroup/a/", "sys/fs/cgroup/cpu,cpuacct/a/", "sys/fs/cgroup/memory/"} {
			for _, name := range []string{"cpu.max", "memory.max", "cpu.cfs_quota_us", "cpu.cfs_period_us", "memory.limit_in_bytes"} {
				tree[folder+name] = &fstest.MapFile{Data: []byte(value)}
			}
		}
		got := ReadLimits(tree)
		if got.CPUs != nil && !(*got.CPUs > 0) || got.Memory != nil && *got.Memory <= 0 {
			t.Errorf("got %s CPUs, %s bytes", show(got.CPUs), show(got.Memory))
		}
	})
}
