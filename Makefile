# GNU make 3.81 or newer. Every variable set with ?= can be given: make run PORT=8080

DOCKER       ?= docker
GO           ?= go
PORT         ?= 5002
MULTI_IMAGE   ?= devops-go-multi
SINGLE_IMAGE  ?= devops-go-single
SCRATCH_IMAGE ?= devops-go-scratch
VERSION      ?= $(shell sed -n 's/^ARG VERSION=//p' Dockerfile)
REVISION     ?= $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null)
FORMAT       ?= text
# The base images. Empty: the defaults that stand in the two Dockerfiles.
GO_IMAGE      ?=
RUNTIME_IMAGE ?=
# More arguments of docker build, such as --no-cache.
BUILD_FLAGS   ?=
# How long make soak takes, in how much memory, and, if not empty, with bare net/http beside it.
SOAK   ?= 6m
MEMORY ?= 64m
BARE   ?=

staticcheck = honnef.co/go/tools/cmd/staticcheck@v0.8.2
actionlint  = github.com/rhysd/actionlint/cmd/actionlint@v1.7.12

# The build tags of the tests that need more than Go, and the platforms that all code must compile for.
tags      = bench flood image kubernetes release
platforms = linux/amd64 linux/arm64 linux/386 linux/arm linux/ppc64le linux/s390x linux/riscv64 \
	darwin/arm64 windows/amd64 windows/arm64 freebsd/amd64 openbsd/amd64

# For Docker 20.10 and for podman, where these are not the defaults.
export DOCKER_BUILDKIT = 1
export BUILDAH_FORMAT  = docker

# The same flags as in the two Dockerfiles.
go_build = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -tags nethttpomithttp2 \
	-ldflags="-s -w -X main.version=$(VERSION) -X main.revision=$(REVISION)"

# $(call image_build,NAME,DOCKERFILE)
image_build = $(DOCKER) build -f $(2) -t $(1):$(VERSION) -t $(1):latest \
	--build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) \
	$(if $(GO_IMAGE),--build-arg GO_IMAGE=$(GO_IMAGE)) \
	$(if $(RUNTIME_IMAGE),--build-arg RUNTIME_IMAGE=$(RUNTIME_IMAGE)) $(BUILD_FLAGS) .

# The settings that make was given, as arguments of docker run: make run-multi DEBUG=true TZ=Asia/Tokyo
run_settings = $(foreach name,DEBUG TZ SHUTDOWN_DELAY SHUTDOWN_TIMEOUT GOMAXPROCS GOMEMLIMIT,\
	$(if $(findstring command,$(origin $(name))),-e $(name)='$($(name))'))

# A test from outside: $(call outside,TAG,FOLDER,MORE ARGUMENTS)
outside = CGO_ENABLED=0 DOCKER='$(DOCKER)' IMAGE=$(MULTI_IMAGE):$(VERSION) $(GO) test -tags $(1) -count=1 -timeout 30m -v $(3) ./test/$(2)

.PHONY: help
help: ## | | print this list (the default)
	@awk -F ':.*## | *[|] *' '/^[a-z-]+:.*## / { printf "  make %-16s %-8s %-28s %s\n", $$1, $$2, $$3, $$4 }' Makefile

# Prerequisites that say what is missing, and what helps, before anything is built: need-docker, need-wrk, …
need-%: FORCE
	@DOCKER='$(DOCKER)' GO='$(GO)' tools/need $*
.PHONY: FORCE
FORCE:

.PHONY: build
build: need-go ## 30 s | Go | the static binary, in bin/
	$(go_build) -o bin/devops-info-service .

.PHONY: run
run: build ## 30 s | Go | the service on this machine, in the foreground, on PORT
	@PORT=$(PORT) exec bin/devops-info-service

.PHONY: build-multi
build-multi: need-docker ## 30 s | Docker | the multi-stage image
	$(call image_build,$(MULTI_IMAGE),Dockerfile)

.PHONY: build-single
build-single: need-docker ## 1 min | Docker | the single-stage image, for comparison
	$(call image_build,$(SINGLE_IMAGE),Dockerfile.single)

.PHONY: build-scratch
build-scratch: override RUNTIME_IMAGE = scratch
build-scratch: need-docker ## 30 s | Docker | the multi-stage image without Alpine
	$(call image_build,$(SCRATCH_IMAGE),Dockerfile)

.PHONY: run-multi
run-multi: build-multi ## 30 s | Docker | the multi-stage image in the foreground, on PORT; removed when it stops
	@name=devops-info-service-$$$$; \
	$(if $(filter 0,$(PORT)),{ for i in 1 2 3 4 5 6 7 8 9; do sleep 1; $(DOCKER) port $$name 5002 2>/dev/null && break; done; } &) \
	exec $(DOCKER) run --rm --name $$name -p $(PORT):5002 $(run_settings) $(MULTI_IMAGE):$(VERSION)

.PHONY: test
test: need-go ## 1 min | Go | the tests
	CGO_ENABLED=0 $(GO) test -parallel 16 ./...

.PHONY: vet
vet: need-go ## 3 min | Go | go vet of all code and tests, for every platform
	@for platform in $(platforms); do \
		echo $$platform; \
		GOOS=$${platform%/*} GOARCH=$${platform#*/} CGO_ENABLED=0 $(GO) vet -tags "$(tags)" ./... || exit 1; \
	done

.PHONY: lint
lint: need-go need-shellcheck ## 1 min | Go, shellcheck | formatting, staticcheck, shellcheck, actionlint
	@files=$$(gofmt -l .); test -z "$$files" || { echo "not formatted: $$files" >&2; exit 1; }
	$(GO) run $(staticcheck) -tags "$(tags)" ./...
	shellcheck .ci/run deploy/release deploy/release-note tools/need
	$(GO) run $(actionlint) .github/workflows/*.yml

.PHONY: test-image
test-image: need-go build-multi ## 1 min | Go, Docker | the multi-stage image in a real engine
	$(call outside,image,image,-run '^TestImage')

.PHONY: test-rollout
test-rollout: need-go need-haproxy build-multi ## 1 min | Go, Docker, HAProxy | a rolling restart under load
	$(call outside,image,image,-run '^TestRollout')

.PHONY: test-flood
test-flood: need-go need-root need-wrk need-hey build-multi ## 5 min | Go, Docker, root, wrk, hey | floods of bad clients, and more good ones than fit
	$(call outside,flood,flood,-skip '^TestSoak$$')

.PHONY: soak
soak: need-go need-root need-wrk build-multi ## 6 min | Go, Docker, root, wrk | honest clients while bad ones take turns; SOAK=1m is shorter, BARE=yes shows bare net/http too
	SOAK=$(SOAK) MEMORY=$(MEMORY) BARE=$(BARE) $(call outside,flood,flood,-run '^TestSoak$$' -timeout 0)

.PHONY: test-kubernetes
test-kubernetes: need-go need-etcd ## 10 min | Go, etcd | deploy/ in a real Kubernetes API server, built from source at first
	@test -x bin/kubernetes/kube-apiserver || echo 'The first run downloads and builds kube-apiserver and kubectl, which takes minutes.'
	$(GO) build -C test/kubernetes/apiserver -trimpath -ldflags='-s -w' -o ../../../bin/kubernetes/ tool
	KUBERNETES='$(CURDIR)/bin/kubernetes' $(call outside,kubernetes,kubernetes)

bench = $(GO) test -run '^$$' -bench . -benchmem . && \
	SERVICE='$(CURDIR)/bin/devops-info-service' $(GO) test -tags bench -run '^TestBench$$' -count=1 -timeout 30m -v ./test/bench

.PHONY: bench
bench: need-wrk build ## 2 min | Go, wrk | the service against a plain handler and bare net/http
	$(bench)

.PHONY: bench-docs
bench-docs: need-wrk build ## 2 min | Go, wrk | the same, and docs/performance.md from that run
	$(bench) -docs '$(CURDIR)/docs/performance.md'

# Built first, because go run ends at SIGTERM without telling the program, which then removes nothing.
# With exec, make's signal reaches the program itself.
compare = $(GO) build -C tools/compare -o '$(CURDIR)/bin/compare' . && \
	DOCKER='$(DOCKER)' MAKE='$(MAKE_COMMAND)' MULTI_IMAGE='$(MULTI_IMAGE)' SINGLE_IMAGE='$(SINGLE_IMAGE)' \
	SCRATCH_IMAGE='$(SCRATCH_IMAGE)' FORMAT=$(1) exec bin/compare

.PHONY: compare
compare: need-go need-docker ## 2 min | Go, Docker | build, measure and compare the three images; FORMAT=text or json
	@$(call compare,'$(FORMAT)')

.PHONY: docs
docs: need-go need-docker ## 2 min | Go, Docker | the same, and the figures and the picture in docs/ and README.md from that run
	@$(call compare,docs)

.PHONY: test-compare
test-compare: need-go ## 1 min | Go | the tests of the comparison itself
	$(GO) vet -C tools/compare ./... && CGO_ENABLED=0 $(GO) test -C tools/compare ./...

# deploy/release reads REGISTRY, VERSION, VARIANT and PLATFORMS from the environment. The VERSION above is no
# version to release; make does not export it, because it was not given.
.PHONY: release
release: need-docker ## 5 min | Docker, a registry | push the image for seven platforms to REGISTRY, as VERSION; PLATFORMS=linux/amd64 narrows it
	@deploy/release

.PHONY: dist
dist: need-go need-git ## 3 min | Go, git | the binary for twelve platforms, as VERSION, packed in dist/
	@deploy/release dist

# The first test begins with a push. Where that cannot be, it says so, and nothing else is run or built.
.PHONY: test-release
test-release: need-go need-docker need-unzip ## 5 min | Go, Docker, registry, unzip | rehearse a release in the registry at localhost:5000
	CGO_ENABLED=0 $(GO) test -tags release -failfast -count=1 -timeout 30m -v ./test/release

.PHONY: clean
clean: ## | | remove bin/, dist/ and the three images
	rm -rf bin dist
	-@$(DOCKER) rmi $(foreach image,$(MULTI_IMAGE) $(SINGLE_IMAGE) $(SCRATCH_IMAGE),$(image):$(VERSION) $(image):latest) 2>/dev/null || true
