# GNU make 3.81 or newer. Every variable set with ?= can be given: make run PORT=8080

DOCKER       ?= docker
GO           ?= go
PORT         ?= 5002
MULTI_IMAGE  ?= devops-go-multi
SINGLE_IMAGE ?= devops-go-single
VERSION      ?= $(shell sed -n 's/^ARG VERSION=//p' Dockerfile)
REVISION     ?= $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null)
FORMAT       ?= text
# The base images. Empty: the defaults that stand in the two Dockerfiles.
GO_IMAGE      ?=
RUNTIME_IMAGE ?=

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
	$(if $(RUNTIME_IMAGE),--build-arg RUNTIME_IMAGE=$(RUNTIME_IMAGE)) .

.PHONY: help
help: ## print this list (the default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## the static binary, in bin/
	$(go_build) -o bin/devops-info-service .

.PHONY: run
run: build ## the service on this machine, in the foreground, on PORT
	PORT=$(PORT) bin/devops-info-service

.PHONY: test
test: ## the tests; needs only Go
	CGO_ENABLED=0 $(GO) test ./...

.PHONY: bench
bench: build ## the handlers' benchmarks, and the service against a bare net/http handler
	$(go_build) -o bin/floor ./testdata/floor
	CGO_ENABLED=0 $(GO) test -run '^$$' -bench . -benchmem .
	CGO_ENABLED=0 SERVICE=bin/devops-info-service FLOOR=bin/floor $(GO) test -tags bench -run '^TestBench$$' -count=1 -v .

.PHONY: build-multi
build-multi: ## the multi-stage image
	$(call image_build,$(MULTI_IMAGE),Dockerfile)

.PHONY: build-single
build-single: ## the single-stage image, for comparison
	$(call image_build,$(SINGLE_IMAGE),Dockerfile.single)

.PHONY: run-multi
run-multi: build-multi ## the multi-stage image in the foreground, on PORT; removed when it stops
	$(DOCKER) run --rm -p $(PORT):5002 $(MULTI_IMAGE):$(VERSION)

.PHONY: test-image
test-image: build-multi ## tests of the multi-stage image in a real engine
	CGO_ENABLED=0 DOCKER=$(DOCKER) IMAGE=$(MULTI_IMAGE):$(VERSION) $(GO) test -tags image -run '^TestImage' -count=1 -v .

.PHONY: test-rollout
test-rollout: build-multi ## a rolling restart behind HAProxy, under load; needs HAProxy
	CGO_ENABLED=0 DOCKER=$(DOCKER) IMAGE=$(MULTI_IMAGE):$(VERSION) $(GO) test -tags image -run '^TestRollout' -count=1 -v .

.PHONY: compare
compare: ## build, measure and compare both images (FORMAT=text, markdown or json)
	@DOCKER='$(DOCKER)' FORMAT='$(FORMAT)' MULTI_IMAGE='$(MULTI_IMAGE)' SINGLE_IMAGE='$(SINGLE_IMAGE)' \
		MAKE='$(MAKE_COMMAND)' scripts/compare.sh

.PHONY: clean
clean: ## remove bin/ and the two images
	rm -rf bin
	-@$(DOCKER) rmi $(foreach image,$(MULTI_IMAGE) $(SINGLE_IMAGE),$(image):$(VERSION) $(image):latest) 2>/dev/null || true
