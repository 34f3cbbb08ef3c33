// Command image writes porthole as a container image: a tar archive for each architecture, which docker load
// and podman load take, and one in the OCI layout with all of them, for a registry. What it writes depends on
// its arguments and $SOURCE_DATE_EPOCH alone.
package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func main() {
	var o options
	flag.StringVar(&o.version, "version", "", "semantic version")
	flag.StringVar(&o.revision, "revision", "", "commit")
	flag.StringVar(&o.out, "out", ".", "`directory` to write to")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: image -version V [-revision R] [-out DIRECTORY] ARCH=ROOT...")
		flag.PrintDefaults()
	}
	flag.Parse()
	if err := o.run(flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

type options struct {
	version, revision, out string
	created                time.Time
}

// run makes an image of each argument: an architecture and the directory with its files.
func (o *options) run(roots []string) error {
	if o.version == "" || len(roots) == 0 {
		return errors.New("want a version and ARCH=ROOT")
	}
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	o.created = time.Unix(epoch, 0).UTC()
	// A tag has no plus sign.
	tag, err := name.NewTag("porthole:" + strings.ReplaceAll(o.version, "+", "_"))
	if err != nil {
		return err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arg := range roots {
		arch, root, ok := strings.Cut(arg, "=")
		if !ok {
			return fmt.Errorf("%q: want ARCH=ROOT", arg)
		}
		img, err := o.image(arch, root)
		if err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
		if err := tarball.WriteToFile(filepath.Join(o.out, fmt.Sprintf("porthole-%s-image-%s.tar", o.version, arch)), tag, img); err != nil {
			return err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform(arch)}})
	}
	return o.writeLayout(index, tag)
}

func platform(arch string) *v1.Platform { return &v1.Platform{OS: "linux", Architecture: arch} }

// image is one with a single layer: the files below root.
func (o *options) image(arch, root string) (v1.Image, error) {
	files, err := archive(root, o.created)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(base, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: o.created}, CreatedBy: "make image"}})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, v1.Time{Time: o.created}
	config.Config = v1.Config{
		Entrypoint: []string{"/usr/bin/porthole"},
		Cmd:        []string{"agent"},
		Env:        []string{"PATH=/usr/bin"},
		Labels: map[string]string{
			"org.opencontainers.image.title":       "porthole",
			"org.opencontainers.image.description": "tracer of TCP and UDP ports and of who has them",
			"org.opencontainers.image.source":      "https://github.com/porthole-dev/porthole",
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.version":     o.version,
			"org.opencontainers.image.revision":    o.revision,
			"org.opencontainers.image.created":     o.created.Format(time.RFC3339),
		},
	}
	return mutate.ConfigFile(img, config)
}

// archive is a tar archive of the files below root, of root and of a time.
func archive(root string, at time.Time) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error { // in the order of names
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil || rel == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h := &tar.Header{Name: rel, Typeflag: tar.TypeReg, Mode: 0o644, Size: info.Size(), ModTime: at, Format: tar.FormatUSTAR}
		switch {
		case d.IsDir():
			h.Name, h.Typeflag, h.Mode, h.Size = rel+"/", tar.TypeDir, 0o755, 0
		case !d.Type().IsRegular():
			return fmt.Errorf("%s is no file", path)
		case info.Mode()&0o100 != 0:
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	err = errors.Join(err, w.Close()) // which writes the end
	return b.Bytes(), err
}

// writeLayout writes an index, with the name it is to have, in the OCI layout as a tar archive.
func (o *options) writeLayout(index v1.ImageIndex, tag name.Tag) error {
	dir, err := os.MkdirTemp("", "porthole-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := path.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag.String()})); err != nil {
		return err
	}
	files, err := archive(dir, o.created)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.out, fmt.Sprintf("porthole-%s-image-oci.tar", o.version)), files, 0o644)
}
