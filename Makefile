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

.PHONY: help
help: ## print this list (the default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## the static binary, in bin/
	$(go_build) -o bin/devops-info-service .

.PHONY: run
run: build ## the service on this machine, in the foreground, on PORT
	PORT=$(PORT) bin/devops-info-service

.PHONY: test
test: ## the tests; needs only Go
	CGO_ENABLED=0 $(GO) test -parallel 16 ./...

.PHONY: test-flood
test-flood: build-multi ## floods of bad clients, and more good ones than fit; needs Docker, root, wrk and hey
	CGO_ENABLED=0 DOCKER=$(DOCKER) IMAGE=$(MULTI_IMAGE):$(VERSION) $(GO) test -tags flood -skip '^TestSoak$$' -count=1 -timeout 30m -v ./test/flood

SOAK   ?= 6m
MEMORY ?= 64m
# Not empty: bare net/http too.
BARE   ?=

.PHONY: soak
soak: build-multi ## honest clients while bad ones take turns, for SOAK (6m) in MEMORY (64m); BARE=yes: bare net/http too
	CGO_ENABLED=0 DOCKER=$(DOCKER) IMAGE=$(MULTI_IMAGE):$(VERSION) SOAK=$(SOAK) MEMORY=$(MEMORY) BARE=$(BARE) \
		$(GO) test -tags flood -run '^TestSoak$$' -count=1 -timeout 0 -v ./test/flood

bench = $(GO) test -run '^$$' -bench . -benchmem . && \
	SERVICE='$(CURDIR)/bin/devops-info-service' $(GO) test -tags bench -run '^TestBench$$' -count=1 -timeout 30m -v ./test/bench

.PHONY: bench
bench: build ## the service against a plain handler and bare net/http, under a client that saturates them; needs wrk
	$(bench)

.PHONY: bench-docs
bench-docs: build ## the same, and the figures and the chart in docs/ from that one run
	$(bench) -docs '$(CURDIR)/docs'

.PHONY: build-multi
build-multi: ## the multi-stage image
	$(call image_build,$(MULTI_IMAGE),Dockerfile)

.PHONY: build-single
build-single: ## the single-stage image, for comparison
	$(call image_build,$(SINGLE_IMAGE),Dockerfile.single)

.PHONY: build-scratch
build-scratch: override RUNTIME_IMAGE = scratch
build-scratch: ## the multi-stage image without Alpine
	$(call image_build,$(SCRATCH_IMAGE),Dockerfile)

.PHONY: run-multi
run-multi: build-multi ## the multi-stage image in the foreground, on PORT; removed when it stops
	$(DOCKER) run --rm -p $(PORT):5002 $(MULTI_IMAGE):$(VERSION)

.PHONY: test-image
test-image: build-multi ## tests of the multi-stage image; needs Docker
	CGO_ENABLED=0 DOCKER=$(DOCKER) IMAGE=$(MULTI_IMAGE):$(VERSION) $(GO) test -tags image -run '^TestImage' -count=1 -timeout 30m -v ./test/image

.PHONY: test-rollout
test-rollout: build-multi ## a rolling restart under load; needs Docker and HAProxy
	CGO_ENABLED=0 DOCKER=$(DOCKER) IMAGE=$(MULTI_IMAGE):$(VERSION) $(GO) test -tags image -run '^TestRollout' -count=1 -v ./test/image

.PHONY: test-kubernetes
test-kubernetes: ## deploy/ in a real Kubernetes API server, built from source; needs etcd-server
	$(GO) build -C test/kubernetes/apiserver -trimpath -ldflags='-s -w' -o ../../../bin/kubernetes/ tool
	CGO_ENABLED=0 KUBERNETES=$(CURDIR)/bin/kubernetes $(GO) test -tags kubernetes -count=1 -v ./test/kubernetes

# deploy/release reads REGISTRY, VERSION and VARIANT from the environment. The VERSION above is no version
# to release; make does not export it, because it was not given.
.PHONY: release
release: ## push the image for two platforms to REGISTRY, as VERSION
	@deploy/release

.PHONY: test-release
test-release: ## rehearse a release in the registry at localhost:5000; needs a builder and qemu-user-static
	CGO_ENABLED=0 $(GO) test -tags release -count=1 -timeout 20m -v ./test/release

# Built first, because go run ends at SIGTERM without telling the program, which then removes nothing.
# With exec, make's signal reaches the program itself.
compare = $(GO) build -C tools/compare -o ../../bin/compare . && \
	DOCKER='$(DOCKER)' MAKE='$(MAKE_COMMAND)' MULTI_IMAGE='$(MULTI_IMAGE)' SINGLE_IMAGE='$(SINGLE_IMAGE)' \
	SCRATCH_IMAGE='$(SCRATCH_IMAGE)' FORMAT=$(1) exec bin/compare

.PHONY: compare
compare: ## build, measure and compare the three images (FORMAT=text or json); two minutes
	@$(call compare,'$(FORMAT)')

.PHONY: docs
docs: ## the same, and the figures in docs/comparison.md and README.md and the chart from that one run
	@$(call compare,docs)

.PHONY: test-compare
test-compare: ## the tests of the comparison itself; needs only Go
	$(GO) vet -C tools/compare ./... && CGO_ENABLED=0 $(GO) test -C tools/compare ./...

.PHONY: clean
clean: ## remove bin/ and the three images
	rm -rf bin
	-@$(DOCKER) rmi $(foreach image,$(MULTI_IMAGE) $(SINGLE_IMAGE) $(SCRATCH_IMAGE),$(image):$(VERSION) $(image):latest) 2>/dev/null || true
