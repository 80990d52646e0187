# Needs BuildKit, which docker build uses since Docker 23 (in 20.10: DOCKER_BUILDKIT=1).
# Both bases can be given: a mirror, a digest, a supported release, or scratch for the runtime.
ARG GO_IMAGE=golang:1.21-alpine
ARG RUNTIME_IMAGE=alpine:3.19
ARG VERSION=1.0.0
ARG REVISION=

FROM ${RUNTIME_IMAGE} AS base

# Runs on the building machine's platform and cross-compiles, so no platform needs emulation.
FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS builder
WORKDIR /src
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG TARGETVARIANT
ARG VERSION
ARG REVISION
# Puts into /out what the image has in addition to its base. All of it is made in one step and copied in
# one, which run again for each commit because of REVISION. So every file is newer than the commit, and a
# release can set each file's time back to the commit's; it cannot set the time of an older, cached file.
# The account is added to the base's own files, if it has any, and here, because scratch has no shell.
# nethttpomithttp2: net/http speaks HTTP/2 only over TLS, and this service speaks no TLS.
RUN --mount=type=bind,from=base,target=/base \
    --mount=type=cache,target=/root/.cache/go-build \
    mkdir -p /out/etc /out/usr/local/bin && \
    for file in passwd group; do \
        if [ -f /base/etc/$file ]; then cat /base/etc/$file; fi >/out/etc/$file; \
    done && \
    echo 'mariaappgo:x:10001:10001:devops-info-service:/:/sbin/nologin' >>/out/etc/passwd && \
    echo 'mariaappgo:x:10001:' >>/out/etc/group && \
    case $TARGETARCH/$TARGETVARIANT in arm/v[5-7]) export GOARM=${TARGETVARIANT#v} ;; esac && \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -tags nethttpomithttp2 \
    -ldflags="-s -w -X main.version=$VERSION -X main.revision=$REVISION" \
    -o /out/usr/local/bin/devops-info-service .

FROM base
COPY --from=builder /out/ /
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="devops-info-service" \
      org.opencontainers.image.description="DevOps course info service" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
# By number: Kubernetes' runAsNonRoot cannot tell that a name is not root.
USER 10001:10001
EXPOSE 5002
# Healthy after 5 s. A check costs 1 % of one processor, most of it Docker's (docs/operations.md). There is no
# start interval, because builders older than Docker 25 refuse it.
HEALTHCHECK --interval=5s --timeout=3s --retries=3 \
    CMD ["/usr/local/bin/devops-info-service", "-healthcheck"]
ENTRYPOINT ["/usr/local/bin/devops-info-service"]
