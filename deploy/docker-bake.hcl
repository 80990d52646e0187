# What make release builds and pushes. deploy/release checks the values first and passes them here.
# To see what would be built, and to build nothing:
#   REGISTRY=registry.example/devops-info-service VERSION=1.2.3 docker buildx bake -f deploy/docker-bake.hcl --print

variable "REGISTRY" {}                       # the image's name without a tag: ghcr.io/OWNER/devops-info-service
variable "VERSION" {}                        # 1.2.3, or 1.2.3-rc.1 for a pre-release
variable "VARIANT" { default = "default" }   # or scratch
variable "PLATFORMS" { default = "" }        # linux/amd64,linux/arm64; empty: all that alpine:3.19 has
variable "REVISION" { default = "" }         # the commit
variable "SOURCE" { default = "" }           # the repository's address
variable "SOURCE_DATE_EPOCH" { default = 0 } # the commit's time, in seconds since 1970
variable "NO_CACHE" { default = false }      # true runs every step of the Dockerfile again

all_platforms = "linux/amd64,linux/arm64,linux/arm/v7,linux/arm/v6,linux/386,linux/ppc64le,linux/s390x"

# The same values are the image's labels and the annotations of its manifests and of the index, because some
# registries show one and some the other. A value that is not known is left out.
metadata = {
  for key, value in {
    title       = "devops-info-service"
    description = "DevOps course info service"
    version     = VERSION
    revision    = REVISION
    source      = SOURCE
    created     = timeadd("1970-01-01T00:00:00Z", "${SOURCE_DATE_EPOCH}s")
  } : "org.opencontainers.image.${key}" => value if value != ""
}

# A pre-release gets only its own tag, so that nobody who follows 1.2 or latest receives it.
versions = length(regexall("-", VERSION)) > 0 ? [VERSION] : [VERSION, regex("^[0-9]+[.][0-9]+", VERSION), "latest"]

target "default" {
  tags        = [for version in versions : "${REGISTRY}:${version}${VARIANT == "scratch" ? "-scratch" : ""}"]
  platforms   = split(",", PLATFORMS != "" ? PLATFORMS : all_platforms)
  labels      = metadata
  annotations = [for key, value in metadata : "index,manifest:${key}=${value}"]
  attest      = ["type=sbom", "type=provenance,mode=max,version=v1"]
  args = {
    VERSION           = VERSION
    REVISION          = REVISION
    SOURCE_DATE_EPOCH = SOURCE_DATE_EPOCH
    RUNTIME_IMAGE     = VARIANT == "scratch" ? "scratch" : null
  }
  # rewrite-timestamp gives every new file the commit's time. Without it, each build has another digest.
  output   = ["type=image,push=true,oci-mediatypes=true,rewrite-timestamp=true"]
  no-cache = NO_CACHE
}
