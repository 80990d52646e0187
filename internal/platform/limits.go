// Package platform finds out what the process runs on: the operating system's release, and how many
// processors, bytes of memory and open files its container leaves it. It reads files below a given
// root.
package platform

import (
	"io/fs"
	"math"
	"path"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
)

// Limits is what the process may use. A nil pointer means unlimited or unknown.
type Limits struct {
	CPUs   *float64 // processor time, in CPUs, such as 0.5
	Memory *int64   // bytes
	Files  *int64   // file descriptors
}

// TuneRuntime makes the Go runtime keep to the limits, because Go 1.21 sees those of the machine. A
// true argument keeps what the user has set by GOMAXPROCS or GOMEMLIMIT, which the runtime reads itself.
func (l Limits) TuneRuntime(keepProcs, keepMemory bool) {
	if !keepProcs && l.CPUs != nil {
		// More threads would use up the limit early in each 100 ms, and the kernel would then pause the
		// process until the next.
		runtime.GOMAXPROCS(int(min(math.Ceil(*l.CPUs), float64(runtime.GOMAXPROCS(0)))))
	}
	if !keepMemory && l.Memory != nil {
		// Otherwise the heap would grow until the container is killed for its memory. The rest is for
		// the kernel's socket buffers, which version 2 of control groups counts too.
		debug.SetMemoryLimit(*l.Memory / 16 * 9)
	}
}

// ReadLimits finds the limits of the process. Those of CPUs and memory are the tightest of its own
// control groups and their ancestors, as far as these can be seen. What cannot be read or understood
// counts as no limit. Both versions of control groups are read because a machine may run both at once:
// docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max, memory.max),
// docs.kernel.org/admin-guide/cgroup-v1/memory.html and docs.kernel.org/scheduler/sched-bwc.html.
func ReadLimits(root fs.FS) Limits {
	limits := Limits{Files: openFiles()}
	groups, _ := fs.ReadFile(root, "proc/self/cgroup")
	for _, line := range strings.Split(string(groups), "\n") {
		// hierarchy-ID:controllers:group (cgroups(7)); version 2 names no controllers.
		fields := strings.SplitN(line, ":", 3)
		if len(fields) != 3 {
			continue
		}
		for _, controller := range strings.Split(fields[1], ",") {
			// Where systemd and container engines mount them. A container may see its own group as the mounted one.
			mounted := path.Join("sys/fs/cgroup", controller)
			for group := path.Join(mounted, path.Clean("/"+fields[2])); group != mounted; group = path.Dir(group) {
				limits.tighten(root, group)
			}
			limits.tighten(root, mounted)
		}
	}
	return limits
}

// tighten lowers the limits to those of one control group. Its directory holds only the files of its
// version and controllers, so the other files read as empty.
func (l *Limits) tighten(root fs.FS, group string) {
	read := func(name string) string {
		data, _ := fs.ReadFile(root, path.Join(group, name))
		return strings.TrimSpace(string(data))
	}
	memory := number(read("memory.max") + read("memory.limit_in_bytes"))
	if memory != nil && (l.Memory == nil || *memory < *l.Memory) {
		l.Memory = memory
	}
	// Quota and period in microseconds, in one file of version 2 and two of version 1. "max" and -1 are no quota.
	cpu := strings.Fields(read("cpu.max") + read("cpu.cfs_quota_us") + " " + read("cpu.cfs_period_us"))
	if len(cpu) != 2 {
		return
	}
	quota, period := number(cpu[0]), number(cpu[1])
	if quota == nil || period == nil {
		return
	}
	cpus := float64(*quota) / float64(*period)
	if l.CPUs == nil || cpus < *l.CPUs {
		l.CPUs = &cpus
	}
}

// number is nil for what is not a number, such as "max".
func number(text string) *int64 {
	n, _ := strconv.ParseInt(text, 10, 64) // on an error, 0 or the number that comes nearest
	return limit(n)
}

// limit returns n unless it means that there is no limit: 0 or less, or a number that comes near the largest,
// such as the largest multiple of the page size in 63 bits, which version 1 of control groups writes.
func limit(n int64) *int64 {
	if n <= 0 || n >= 1<<62 {
		return nil
	}
	return &n
}
