#!/bin/sh
# Builds the single-stage and the multi-stage image, measures both, prints one table, and fails when
# a claim about them does not hold. What it measures is the images' own files and the running
# containers; nothing here is typed in but the thresholds.
#
#   make compare                    a table for the terminal
#   make compare FORMAT=markdown    the same for a README
#   make compare FORMAT=json        the same for a program
#
# Needs make, curl and a Docker Engine (20.10 or newer) or podman (DOCKER=podman). Exit status: 0 if
# every claim holds, 1 if one does not, 2 if it could not be measured.
set -u
locale=${LC_ALL:-${LC_CTYPE:-${LANG:-}}}
export LC_ALL=C

DOCKER=${DOCKER:-docker}
FORMAT=${FORMAT:-text}
multi=${MULTI_IMAGE:-devops-go-multi}:latest
single=${SINGLE_IMAGE:-devops-go-single}:latest
binary=/usr/local/bin/devops-info-service

name=devops-compare-$$ # of every container and image made here for the measurement alone
work=
jobs=

say() { echo "compare: $*" >&2; }
die() {
	say "$*"
	exit 2
}
# shellcheck disable=SC2317 # called by the traps
cleanup() {
	trap - EXIT HUP INT TERM
	for job in $jobs; do kill "$job" 2>/dev/null; done
	# One by one: podman removes none of several when one is not there.
	for kind in single multi; do "$DOCKER" rm -f "$name-$kind" >/dev/null 2>&1; done
	for tag in latest measured; do "$DOCKER" rmi -f "$name:$tag" >/dev/null 2>&1; done
	[ -z "$work" ] || rm -rf "$work"
}

case $FORMAT in text | markdown | json) ;; *) die "FORMAT \"$FORMAT\": must be text, markdown or json" ;; esac
command -v curl >/dev/null || die "curl is needed and not installed"
"$DOCKER" info >/dev/null 2>&1 || die "no container engine answers: \"$DOCKER info\" failed (DOCKER names another, such as podman)"

trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
work=$(mktemp -d) || die "cannot make a temporary folder"

# now prints seconds with a fraction where this machine's date or perl has one.
now() {
	case $(date +%N) in
	*[!0-9]* | '') perl -MTime::HiRes=time -e 'printf "%.3f\n", time' 2>/dev/null || date +%s ;;
	*) date +%s.%N ;;
	esac
}
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.2f\n", b - a }'; }
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
quietly() { "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; die "failed: $*"; }; }
build() { quietly "${MAKE:-make}" -C "$1" DOCKER="$DOCKER" "$2" "$3" VERSION=measured REVISION=; }
image() { "$DOCKER" image inspect -f "$2" "$1"; }
# both FUNCTION prints what it prints for the single-stage and for the multi-stage image.
both() { printf '%s\t%s\n' "$("$1" single)" "$("$1" multi)"; }
# row KEY KIND LABEL: takes the pair of values from standard input.
row() { printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$(cat)" >>"$work/rows"; }
# value KEY single|multi
value() { awk -F '\t' -v k="$1" -v c="$2" '$1 == k { print c == "single" ? $4 : $5 }' "$work/rows"; }
# claim LABEL MEASURED, and the test as a command that succeeds where the claim holds.
claim() {
	label=$1 measured=$2
	shift 2
	if "$@"; then result=pass; else result=FAIL; fi
	printf '%s\t%s\t%s\n' "$label" "$measured" "$result" >>"$work/claims"
}
# holds EXPRESSION: arithmetic with fractions.
holds() { awk "BEGIN { exit !($1) }"; }

# --- The images, as anyone builds them.

say "building both images"
quietly "${MAKE:-make}" DOCKER="$DOCKER" build-single build-multi

for kind in single multi; do
	eval "ref=\$$kind"
	# shellcheck disable=SC2154 # set by eval
	quietly "$DOCKER" create --name "$name-$kind" "$ref"
	"$DOCKER" export "$name-$kind" >"$work/$kind.tar" || die "cannot export $ref"
	quietly "$DOCKER" rm "$name-$kind"
	# One line a file: mode, owner's uid, bytes, path. GNU tar and BSD tar list differently.
	tar --numeric-owner -tvf "$work/$kind.tar" | awk '
		{ if ($2 ~ "/") { split($2, owner, "/"); uid = owner[1]; size = $3; at = 6 }
		  else { uid = $3; size = $5; at = 9 }
		  path = $at; sub(/^\.\//, "", path)
		  if (path ~ /^(\.dockerenv|dev|proc|sys)(\/|$)/) next # made by the engine at every start
		  print $1, uid, size, path }' >"$work/$kind.list"
	tar -xOf "$work/$kind.tar" "${binary#/}" >"$work/$kind.bin" || die "$ref has no $binary"
done

say "compressing what a registry would send"
for kind in single multi; do
	eval "ref=\$$kind"
	"$DOCKER" save "$ref" 2>/dev/null | gzip -9n | wc -c >"$work/$kind.gz" &
	jobs="$jobs $!"
done

# --- Sizes.

sum() { awk -v p="^($2)" '$1 ~ /^-/ && $4 ~ p { n += $3 } END { print n + 0 }' "$work/$1.list"; }
files() { sum "$1" ''; }
cache() { sum "$1" 'root/.cache/go-build/'; }
toolchain() { sum "$1" 'usr/local/go/'; }
service() { sum "$1" "${binary#/}\$"; }
base() { echo $(($(files "$1") - $(cache "$1") - $(toolchain "$1") - $(service "$1"))); }
stream() { wc -c <"$work/$1.tar" | tr -d ' '; }
engine_size() { eval "image \"\$$1\" '{{.Size}}'"; }
both files | row unpacked bytes "unpacked: files in docker export"
both base | row base bytes "  base image and the rest"
both toolchain | row toolchain bytes "  Go toolchain"
both cache | row cache bytes "  Go build cache"
both service | row binary bytes "  the service's binary"
without_cache() { echo $(($(files "$1") - $(cache "$1"))); }
both without_cache | row without_cache bytes "  all of it without the build cache"
both stream | row export_stream bytes "docker export | wc -c"
both engine_size | row engine_size bytes "the engine's own .Size"

# --- The binary.

hash() { { sha256sum "$1" 2>/dev/null || shasum -a 256 "$1"; } | cut -d ' ' -f 1; }
sha256() { hash "$work/$1.bin"; }
# A dynamic executable names its interpreter in a program header of type 3 (ELF, 64 bits).
linkage() {
	od -An -v -tu1 -N 4096 "$work/$1.bin" | awk '
		{ for (i = 1; i <= NF; i++) b[n++] = $i }
		function le(at, bytes,   v) { while (bytes--) v = v * 256 + b[at + bytes]; return v }
		END {
			if (b[0] != 127 || b[1] != 69 || b[4] != 2) { print "not ELF"; exit }
			how = "static"
			for (i = 0; i < le(56, 2); i++) if (le(le(32, 8) + i * le(54, 2), 4) == 3) how = "dynamic"
			print how
		}'
}
both sha256 | row sha256 hash "sha256 of the binary"
both linkage | row linkage text "linked"

say "building without -s -w"
mkdir "$work/unstripped"
cp Makefile Dockerfile .dockerignore go.mod ./*.go "$work/unstripped"
sed 's/-ldflags="-s -w /-ldflags="/' Dockerfile >"$work/unstripped/Dockerfile"
cmp -s Dockerfile "$work/unstripped/Dockerfile" && die "Dockerfile has no -s -w to leave out"
build "$work/unstripped" build-multi MULTI_IMAGE="$name"
quietly "$DOCKER" create --name "$name-multi" "$name:measured"
"$DOCKER" export "$name-multi" | tar -xOf - "${binary#/}" >"$work/unstripped.bin" || die "cannot export $name"
quietly "$DOCKER" rm "$name-multi"
unstripped=$(wc -c <"$work/unstripped.bin" | tr -d ' ')
saved() { echo $((unstripped - $(service "$1"))); }
both saved | row stripped bytes "  saved in it by -s -w"

# --- What is in there for an attacker.

packages() { tar -xOf "$work/$1.tar" lib/apk/db/installed 2>/dev/null | grep -c '^P:'; }
# Docker's own etc/hosts and the like are empty and executable until a container starts.
executables() { awk '$1 ~ /^-..[xs]/ && $3 > 0' "$work/$1.list" | wc -l | tr -d ' '; }
setuid() { awk '$1 ~ /^-..[sS]/ || $1 ~ /^-.....[sS]/' "$work/$1.list" | wc -l | tr -d ' '; }
# found KIND NAMES: those of the names (a pattern) that lie in a bin folder.
found() {
	names=$(awk -v p="^(.*/)?s?bin/($2)\$" '$4 ~ p { sub(/.*\//, "", $4); print $4 }' "$work/$1.list" | sort -u | paste -sd ' ' -)
	echo "${names:-none}"
}
shells() { found "$1" 'sh|ash|bash|dash|zsh|ksh'; }
tools() { found "$1" 'go|gofmt|[gt]?cc|clang|c[+][+]|g[+][+]|ld|as|make|git'; }
managers() { found "$1" 'apk|apt|apt-get|dpkg|dnf|yum|rpm'; }
both packages | row packages count "apk packages"
both executables | row executables count "executable files"
both setuid | row setuid count "setuid or setgid files"
both shells | row shells text "shells"
both tools | row tools text "Go, C compiler, make, git"
both managers | row managers text "package manager"

# --- Running: five starts each; the last one stays for the other questions.

for job in $jobs; do wait "$job" || die "docker save failed"; done
jobs=
gz() { tr -d ' ' <"$work/$1.gz"; }
seconds_at_100() { awk -v n="$(gz "$1")" 'BEGIN { printf "%.2f\n", n * 8 / 100e6 }'; }
both gz | row download bytes "download: docker save | gzip -9n"
both seconds_at_100 | row download_time seconds "  at 100 Mbit/s (computed)"

start() { # single|multi, and any more arguments of docker run
	kind=$1
	eval "ref=\$$kind"
	shift
	begun=$(now)
	quietly "$DOCKER" run -d --name "$name-$kind" -p 127.0.0.1::5002 "$@" "$ref"
	address=$("$DOCKER" port "$name-$kind" 5002/tcp | head -n 1)
	until curl -fs -m 1 -o /dev/null "http://$address/health"; do
		holds "$(since "$begun") < 20" || die "$ref does not answer /health within 20 s"
	done
	since "$begun" >>"$work/$kind.starts"
	# "1.5MiB / 2GiB" in bytes, as the engine counts: docker's units are of 1024, podman's of 1000.
	"$DOCKER" stats --no-stream --format '{{.MemUsage}}' "$name-$kind" | awk '
		{ u = $1; sub(/[0-9.]+/, "", u); n = $1 + 0
		  f["B"] = 1; f["kB"] = f["KB"] = 1e3; f["MB"] = 1e6; f["GB"] = 1e9
		  f["KiB"] = 1024; f["MiB"] = 1024 ^ 2; f["GiB"] = 1024 ^ 3
		  printf "%d\n", n * f[u] }' >>"$work/$kind.stats"
	"$DOCKER" exec "$name-$kind" cat /proc/1/status 2>/dev/null |
		awk '/^Rss(Anon|File):/ { n += $2 } END { printf "%d\n", n * 1024 }' >>"$work/$kind.rss"
}
for run in 1 2 3 4 5; do
	say "starting both, $run of 5"
	for kind in single multi; do
		quietly "$DOCKER" rm -f "$name-$kind"
		start "$kind"
	done
done
starts() { median <"$work/$1.starts"; }
stats() { median <"$work/$1.stats"; }
rss() { median <"$work/$1.rss"; }
both starts | row start seconds "docker run to first 200 of /health"
both stats | row memory bytes "memory then, by docker stats"
both rss | row rss bytes "  RssAnon + RssFile of the process"

inside() { "$DOCKER" exec "$name-$1" sh -c "$2" 2>/dev/null; }
user() { echo "$(inside "$1" 'id -un') ($(inside "$1" 'id -u'))"; }
# A folder counts when its mode lets the user write; root needs no mode.
writable() {
	awk -v uid="$(inside "$1" 'id -u')" '$1 ~ /^d/ && (uid == 0 || $1 ~ /^d.......w/ || ($2 == uid && $1 ~ /^d.w/)) {
		n++; sub(/\/$/, "", $4); list = list " /" $4
	} END { print (n > 4 ? n " folders" : n ? substr(list, 2) : "none") }' "$work/$1.list"
}
both user | row user text "user (uid)"
both writable | row writable text "folders that user can write"

# keys KIND: the keys of both answers, in order.
keys() {
	address=$("$DOCKER" port "$name-$1" 5002/tcp | head -n 1)
	for path in / /health; do
		curl -fs -m 5 "http://$address$path" | grep -o '"[a-z_]*":' | paste -sd ' ' -
	done
}
both_keys_same() { [ -n "$(keys multi)" ] && [ "$(keys single)" = "$(keys multi)" ]; }
say "trying every time zone"
"$DOCKER" run --rm "$single" unzip -l /usr/local/go/lib/time/zoneinfo.zip |
	awk 'NF == 4 && $1 ~ /^[0-9]+$/ { print $4 }' >"$work/zones"
zones=$(wc -l <"$work/zones" | tr -d ' ')
# The health check reads TZ as the service does, and then asks the one that runs there.
zones_bad=$("$DOCKER" exec -i "$name-multi" sh -c "while read -r z; do TZ=\$z $binary -healthcheck 2>/dev/null || echo \$z; done" \
	<"$work/zones" | wc -l | tr -d ' ')
certificates=$(tar -xOf "$work/multi.tar" etc/ssl/certs/ca-certificates.crt 2>/dev/null | grep -c 'BEGIN CERTIFICATE')
same_keys=differ
both_keys_same && same_keys="the same"
whoami=$(user multi)

# --- Building: cold, and after a change of one line. In copies of the tree.

mkdir "$work/copy"
cp Makefile Dockerfile Dockerfile.single .dockerignore go.mod ./*.go "$work/copy"
timed() { # single|multi FILE SECONDS' FILE BUILD-ARGUMENTS
	kind=$1 dockerfile=$2 out=$3
	shift 3
	begun=$(now)
	DOCKER_BUILDKIT=1 quietly "$DOCKER" build "$@" -f "$work/copy/$dockerfile" -t "$name:latest" "$work/copy"
	since "$begun" >"$work/$kind.$out"
	quietly "$DOCKER" rmi -f "$name:latest"
}
# --no-cache does not empty a cache mount, so the cold build goes without it.
sed 's/--mount=type=cache,[^ ]*//' Dockerfile >"$work/copy/Dockerfile.cold"
cmp -s Dockerfile "$work/copy/Dockerfile.cold" && die "Dockerfile has no cache mount to leave out"
say "building single-stage, cold"
timed single Dockerfile.single cold --no-cache
say "building multi-stage, cold"
timed multi Dockerfile.cold cold --no-cache
sed "s/^\(	serviceDescription *= \".*\)\"/\1 $(date +%s)\"/" handlers.go >"$work/copy/handlers.go"
cmp -s handlers.go "$work/copy/handlers.go" && die "handlers.go has no serviceDescription to change"
say "building single-stage, one line changed"
timed single Dockerfile.single changed
say "building multi-stage, one line changed"
timed multi Dockerfile changed
cold() { cat "$work/$1.cold"; }
changed() { cat "$work/$1.changed"; }
both cold | row build_cold seconds "build, nothing cached"
both changed | row build_changed seconds "build after a change of one line"

# --- The claims. "reference" is the figure this project set out to beat. Times are no claims: they
# would fail on a busy machine.

size=$(value unpacked multi)
mb() { awk -v n="$1" 'BEGIN { printf "%.2f MB", n / 1e6 }'; }
ratio=$(awk -v a="$(value unpacked single)" -v b="$size" 'BEGIN { printf "%.1f", a / b }')
smaller=$(awk -v a="$(value unpacked single)" -v b="$size" 'BEGIN { printf "%.1f", 100 * (1 - b / a) }')
claim "image <= 12.5 MB (reference 18.4)" "$(mb "$size")" holds "$size <= 12.5e6"
claim "at least 93.7 % smaller" "$smaller %" holds "$smaller >= 93.7"
claim "at least 15.9 : 1" "$ratio : 1" holds "$ratio >= 15.9"
claim "binary <= 5.0 MB (reference 10)" "$(mb "$(value binary multi)")" holds "$(value binary multi) <= 5e6"
claim "binary is static" "$(value linkage multi)" [ "$(value linkage multi)" = static ]
claim "the same binary in both" "$(value sha256 multi | cut -c 1-12)" [ "$(value sha256 single)" = "$(value sha256 multi)" ]
claim "runs as mariaappgo, uid not 0" "$whoami" [ "${whoami% (*}" = mariaappgo ] && [ "${whoami#* }" != "(0)" ]
claim "no Go toolchain, compiler or git" "$(value tools multi)" [ "$(value tools multi)" = none ]
claim "CA bundle of >= 100 certificates" "$certificates" [ "$certificates" -ge 100 ]
claim "every time zone works" "$((zones - zones_bad)) of $zones" holds "$zones >= 400 && $zones_bad == 0"
claim "memory <= 3.2 MB (docker stats)" "$(mb "$(value memory multi)")" holds "$(value memory multi) > 0 && $(value memory multi) <= 3.2e6"
claim "both answer both endpoints, same keys" "$same_keys" [ "$same_keys" = "the same" ]

# --- The table.

engine=$("$DOCKER" version --format '{{.Server.Version}}' 2>/dev/null || "$DOCKER" --version)
processor=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)
processor=${processor:-$(sysctl -n machdep.cpu.brand_string 2>/dev/null || uname -m)}
measured="$(date -u +%Y-%m-%d), engine $DOCKER $engine, $(getconf _NPROCESSORS_ONLN) x $processor"
go_version=$("$DOCKER" run --rm "$multi" "$binary" -version | sed 's/(\([0-9a-f]\{12\}\)[0-9a-f]*/(\1/')
bar=
if [ -t 1 ]; then
	bar='#'
	case ${TERM:-dumb}:$locale in dumb:*) ;; *UTF-8 | *utf8) bar='█' ;; esac
fi

awk -F '\t' -v format="$FORMAT" -v measured="$measured" -v built="$go_version" -v bar="$bar" '
function show(kind, v) {
	if (kind == "bytes") return v >= 1e5 || v == 0 ? sprintf("%.2f MB", v / 1e6) : sprintf("%d B", v)
	if (kind == "seconds") return sprintf("%.2f s", v)
	if (kind == "hash") return substr(v, 1, 12)
	return v
}
function against(kind, a, b) {
	if (kind == "text" || kind == "hash") return a == b ? "same" : ""
	if (kind == "count" || b == 0) return a == b ? "same" : "-" (kind == "bytes" ? show(kind, a - b) : a - b)
	return sprintf("%.1f : 1", a / b)
}
function quote(s) { gsub(/["\\]/, "\\\\&", s); return "\"" s "\"" }
function raw(kind, v) { return kind == "text" || kind == "hash" ? quote(v) : v + 0 }
function line(n,   s) { while (n-- > 0) s = s bar; return s }
FILENAME ~ /rows$/ { key[++n] = $1; kind[n] = $2; label[n] = $3; a[n] = $4; b[n] = $5; next }
{ claim[++m] = $1; value[m] = $2; result[m] = $3; if ($3 != "pass") failed++ }
END {
	if (format == "json") {
		printf "{\"measured\":%s,\"version\":%s,\"rows\":{", quote(measured), quote(built)
		for (i = 1; i <= n; i++)
			printf "%s%s:{\"kind\":%s,\"single\":%s,\"multi\":%s}", (i > 1 ? "," : ""), quote(key[i]), quote(kind[i]), raw(kind[i], a[i]), raw(kind[i], b[i])
		printf "},\"claims\":["
		for (i = 1; i <= m; i++)
			printf "%s{\"claim\":%s,\"measured\":%s,\"holds\":%s}", (i > 1 ? "," : ""), quote(claim[i]), quote(value[i]), (result[i] == "pass" ? "true" : "false")
		print "]}"
	} else if (format == "markdown") {
		print "| | single-stage | multi-stage | |\n| --- | ---: | ---: | ---: |"
		for (i = 1; i <= n; i++) {
			text = label[i]; sub(/^  /, "\\&emsp;", text); gsub(/\|/, "\\|", text)
			printf "| %s | %s | %s | %s |\n", text, show(kind[i], a[i]), show(kind[i], b[i]), against(kind[i], a[i], b[i])
		}
		print "\n| claim | measured | |\n| --- | ---: | --- |"
		for (i = 1; i <= m; i++) printf "| %s | %s | %s |\n", claim[i], value[i], result[i]
		printf "\nMeasured %s; %s.\n", measured, built
	} else {
		format = "%-36s %13s %18s %10s\n"
		printf format, "", "single-stage", "multi-stage", ""
		for (i = 1; i <= n; i++) printf format, label[i], show(kind[i], a[i]), show(kind[i], b[i]), against(kind[i], a[i], b[i])
		if (bar != "") printf "single %s\nmulti  %s\n", line(70), line(int(70 * b[1] / a[1] + 0.5))
		print ""
		for (i = 1; i <= m; i++) printf "%-4s  %-40s %s\n", result[i], claim[i], value[i]
		printf "%s\n%s\n", measured, built
	}
	exit (failed > 0)
}' "$work/rows" "$work/claims" || exit 1
