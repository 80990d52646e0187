package main

import (
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
)

// limits is what the process's control groups let it use. nil: unlimited or unknown.
type limits struct {
	cpus   *float64 // CPUs' worth of time, such as 0.5
	memory *int64   // bytes
}

// maxProcs is the GOMAXPROCS that fits: the limit rounded up, at least 1 and at most what it is.
func (l limits) maxProcs(current int) int {
	if l.cpus == nil || *l.cpus >= float64(current) {
		return current
	}
	return max(1, int(math.Ceil(*l.cpus)))
}

// readLimits finds the tightest limits of the process's own control groups and of their ancestors
// as far as they are mounted, below the root directory root. What cannot be read or understood
// counts as no limit. Both versions are looked at, because a machine may run both at once:
// docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max, memory.max) and
// docs.kernel.org/admin-guide/cgroup-v1/memory.html, docs.kernel.org/scheduler/sched-bwc.html.
func readLimits(root fs.FS) limits {
	var tightest limits
	groups, _ := fs.ReadFile(root, "proc/self/cgroup")
	mounts, _ := fs.ReadFile(root, "proc/self/mountinfo")
	for _, line := range strings.Split(string(groups), "\n") {
		// hierarchy-ID:controllers:path (cgroups(7)); version 2 names no controllers.
		fields := strings.SplitN(line, ":", 3)
		if len(fields) != 3 {
			continue
		}
		for _, controller := range strings.Split(fields[1], ",") {
			mount, below := findMount(string(mounts), controller, fields[2])
			if mount == "" {
				continue
			}
			// From the process's own group up to the mounted one.
			for {
				group, err := fs.Sub(root, path.Join(mount, below))
				if err != nil {
					break
				}
				switch controller {
				case "":
					tightest.add(cpuMax(group), number(group, "memory.max"))
				case "cpu":
					tightest.add(cfsQuota(group), nil)
				case "memory":
					tightest.add(nil, number(group, "memory.limit_in_bytes"))
				}
				if below == "." {
					break
				}
				below = path.Dir(below)
			}
		}
	}
	return tightest
}

// add keeps the tighter of each.
func (l *limits) add(cpus *float64, memory *int64) {
	if cpus != nil && (l.cpus == nil || *cpus < *l.cpus) {
		l.cpus = cpus
	}
	if memory != nil && (l.memory == nil || *memory < *l.memory) {
		l.memory = memory
	}
}

// findMount returns where a controller's hierarchy is mounted (empty: nowhere; no leading slash)
// and where in there the group is ("." is the mounted directory itself). The format of mountinfo is
// that of proc_pid_mountinfo(5).
func findMount(mountinfo, controller, group string) (mount, below string) {
	for _, line := range strings.Split(mountinfo, "\n") {
		before, after, _ := strings.Cut(line, " - ")
		// ID, parent, device, root, mount point, … - type, source, options
		place, kind := strings.Fields(before), strings.Fields(after)
		if len(place) < 5 || len(kind) < 3 {
			continue
		}
		switch {
		case controller == "" && kind[0] == "cgroup2":
		case controller != "" && kind[0] == "cgroup" && strings.Contains(","+kind[2]+",", ","+controller+","):
		default:
			continue
		}
		root := strings.TrimSuffix(place[3], "/") + "/"
		below, inside := strings.CutPrefix(group+"/", root)
		if inside && !strings.Contains("/"+below, "/../") {
			return strings.Trim(place[4], "/"), path.Clean(strings.Trim(below, "/"))
		}
		if mount == "" {
			// A container may see its own group mounted as if it were the root.
			mount = strings.Trim(place[4], "/")
		}
	}
	return mount, "."
}

// cpuMax reads version 2's cpu.max: quota and period in microseconds, "max" for no quota.
func cpuMax(group fs.FS) *float64 {
	data, _ := fs.ReadFile(group, "cpu.max")
	fields := strings.Fields(string(data))
	if len(fields) != 2 {
		return nil
	}
	return ratio(positive(fields[0]), positive(fields[1]))
}

// cfsQuota reads version 1's quota and period in microseconds; a quota of -1 is none.
func cfsQuota(group fs.FS) *float64 {
	return ratio(number(group, "cpu.cfs_quota_us"), number(group, "cpu.cfs_period_us"))
}

func ratio(quota, period *int64) *float64 {
	if quota == nil || period == nil {
		return nil
	}
	cpus := float64(*quota) / float64(*period)
	return &cpus
}

// number reads a file that holds one number.
func number(group fs.FS, name string) *int64 {
	data, _ := fs.ReadFile(group, name)
	return positive(strings.TrimSpace(string(data)))
}

// positive parses a number above 0. Version 1 writes "no limit" as the largest multiple of the page
// size in 63 bits, so whatever comes near it counts as none.
func positive(text string) *int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 || n >= 1<<62 {
		return nil
	}
	return &n
}
