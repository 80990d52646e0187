//go:build release

package release_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

const (
	indexType    = "application/vnd.oci.image.index.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	intotoType   = "application/vnd.in-toto+json"
)

// descriptor, manifest and imageConfig hold what the tests read of the OCI image specification.
type descriptor struct {
	MediaType   string
	Digest      string
	Platform    struct{ OS, Architecture string }
	Annotations map[string]string
}

// manifest is an index, which has Manifests, or the manifest of one image, which has Config and Layers.
type manifest struct {
	MediaType   string
	Manifests   []descriptor
	Config      descriptor
	Layers      []descriptor
	Annotations map[string]string
}

type imageConfig struct {
	Config struct {
		User   string
		Labels map[string]string
	}
}

// registry is one repository of a registry on this machine, read over plain HTTP.
type registry struct {
	host, name string
}

func newRegistry(t *testing.T, repository string) registry {
	t.Helper()
	host, name, _ := strings.Cut(repository, "/")
	if machine, _, _ := strings.Cut(host, ":"); machine != "localhost" && machine != "127.0.0.1" {
		t.Fatalf("REGISTRY %q: must be on localhost, because a rehearsal moves the tag latest", repository)
	}
	return registry{host: host, name: name}
}

var client = http.Client{Timeout: 30 * time.Second}

// get returns the body and the digest of a manifest or blob, and "" as the digest if there is none.
func (r registry) get(t *testing.T, kind, reference string) ([]byte, string) {
	t.Helper()
	request, err := http.NewRequest("GET", fmt.Sprintf("http://%s/v2/%s/%s/%s", r.host, r.name, kind, reference), nil)
	if err != nil {
		t.Fatal(err)
	}
	if kind == "manifests" {
		request.Header.Set("Accept", indexType+", "+manifestType)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	switch response.StatusCode {
	case http.StatusOK:
		return body, fmt.Sprintf("sha256:%x", sha256.Sum256(body))
	case http.StatusNotFound:
		return nil, ""
	}
	t.Fatalf("GET %s: %s: %s", request.URL, response.Status, body)
	return nil, ""
}

// digest returns what a tag points at, or "" if there is no such tag.
func (r registry) digest(t *testing.T, tag string) string {
	t.Helper()
	_, digest := r.get(t, "manifests", tag)
	return digest
}

// decode reads the manifest or blob of that digest into a value.
func (r registry) decode(t *testing.T, kind, digest string, value any) {
	t.Helper()
	body, got := r.get(t, kind, digest)
	if got != digest {
		t.Fatalf("%s %s: got %q", kind, digest, got)
	}
	if err := json.Unmarshal(body, value); err != nil {
		t.Fatalf("%s %s: %v", kind, digest, err)
	}
}

// image is what an index holds for one platform.
type image struct {
	manifest
	digest      string
	config      imageConfig
	attestation *manifest // nil if there is none
}

// images returns the index of that digest and its images by platform, such as "linux/amd64".
func (r registry) images(t *testing.T, digest string) (manifest, map[string]image) {
	t.Helper()
	var index manifest
	r.decode(t, "manifests", digest, &index)
	images := make(map[string]image)
	attestations := make(map[string]*manifest) // by the digest of the image that they are about
	for _, d := range index.Manifests {
		if d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
			attestation := new(manifest)
			r.decode(t, "manifests", d.Digest, attestation)
			attestations[d.Annotations["vnd.docker.reference.digest"]] = attestation
			continue
		}
		img := image{digest: d.Digest}
		r.decode(t, "manifests", d.Digest, &img.manifest)
		r.decode(t, "blobs", img.Config.Digest, &img.config)
		images[d.Platform.OS+"/"+d.Platform.Architecture] = img
	}
	for platform, img := range images {
		img.attestation = attestations[img.digest]
		images[platform] = img
	}
	return index, images
}

// statement reads the predicate of that type from an image's attestations.
func (r registry) statement(t *testing.T, img image, predicateType string, predicate any) {
	t.Helper()
	if img.attestation == nil {
		t.Fatalf("image %s has no attestations", img.digest)
	}
	for _, layer := range img.attestation.Layers {
		if layer.MediaType != intotoType || layer.Annotations["in-toto.io/predicate-type"] != predicateType {
			continue
		}
		statement := struct {
			PredicateType string
			Subject       []struct{ Digest map[string]string }
			Predicate     any
		}{Predicate: predicate}
		r.decode(t, "blobs", layer.Digest, &statement)
		if statement.PredicateType != predicateType {
			t.Errorf("predicate type: got %q, want %q", statement.PredicateType, predicateType)
		}
		for _, subject := range statement.Subject {
			if got := "sha256:" + subject.Digest["sha256"]; got != img.digest {
				t.Errorf("subject: got %s, want %s", got, img.digest)
			}
		}
		return
	}
	t.Fatalf("image %s has no attestation of type %s", img.digest, predicateType)
}

// file returns one file of an image, by its path without the leading slash.
func (r registry) file(t *testing.T, img image, path string) []byte {
	t.Helper()
	for i := len(img.Layers) - 1; i >= 0; i-- { // the last layer that has the file decides
		blob, digest := r.get(t, "blobs", img.Layers[i].Digest)
		if digest != img.Layers[i].Digest {
			t.Fatalf("layer %s: got %q", img.Layers[i].Digest, digest)
		}
		unzipped, err := gzip.NewReader(bytes.NewReader(blob))
		if err != nil {
			t.Fatal(err)
		}
		archive := tar.NewReader(unzipped)
		for {
			header, err := archive.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if header.Name != path {
				continue
			}
			content, err := io.ReadAll(archive)
			if err != nil {
				t.Fatal(err)
			}
			return content
		}
	}
	t.Fatalf("image %s has no file %s", img.digest, path)
	return nil
}
