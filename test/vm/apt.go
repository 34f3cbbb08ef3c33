package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// archive is releases of Debian for one architecture, read with apt's own
// programs but with none of the machine's apt state.
type archive struct {
	conf string // file
}

// keyrings are where Debian has the keys of its archive.
var keyrings = []string{"/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"}

// openArchive reads the package lists of releases.
func openArchive(ctx context.Context, dir string, releases []string, arch string) (*archive, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	sources, err := sourcesList(ctx, releases)
	if err != nil {
		return nil, err
	}
	a := &archive{conf: filepath.Join(dir, "apt.conf")}
	for name, text := range map[string]string{
		"sources.list": sources, "preferences": alike, "status": "", "apt.conf": aptConf(dir, arch),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	if _, err := a.run(ctx, "", "update"); err != nil {
		return nil, err
	}
	return a, nil
}

// alike has of every package the newest be taken: backports would only be where nothing else is.
const alike = "Package: *\nPin: release c=main\nPin-Priority: 500\n"

// aptConf is read after the machine's configuration, whose proxies it keeps and
// whose hooks it clears.
func aptConf(dir, arch string) string {
	return fmt.Sprintf(`Dir::State %[1]q;
Dir::State::Lists "lists";
Dir::State::status "%[2]s/status";
Dir::Cache "%[2]s/cache";
Dir::Cache::Archives "archives";
Dir::Etc::SourceList "%[2]s/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "%[2]s/preferences";
Dir::Etc::PreferencesParts "/dev/null";
Dir::Etc::Trusted "/dev/null";
Dir::Etc::TrustedParts "/dev/null";
APT::Architecture %[3]q;
#clear APT::Architectures;
APT::Architectures { %[3]q; };
APT::Sandbox::User "";
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
`, dir+"/state", dir, arch)
}

// sourcesList is the releases in the machine's own mirror of Debian. Its signature
// is always verified. How old it may be is not looked at, for an archived release
// is past that date: what comes of it runs in a VM only.
func sourcesList(ctx context.Context, releases []string) (string, error) {
	keyring := ""
	for _, file := range keyrings {
		if _, err := os.Stat(file); err == nil {
			keyring = file
			break
		}
	}
	if keyring == "" {
		return "", fmt.Errorf("no %s: install debian-archive-keyring", keyrings[0])
	}
	targets, err := output(ctx, "", "apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages", "Origin: Debian")
	if err != nil {
		return "", err
	}
	return sourcesOf(targets, keyring, releases)
}

// sourcesOf writes a sources.list from what apt-get indextargets tells of the machine's own:
// lines of a label and an address.
func sourcesOf(targets, keyring string, releases []string) (string, error) {
	mirror := make(map[string]string)
	for line := range strings.Lines(targets) {
		if label, uri, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			mirror[label] = uri
		}
	}
	if mirror["Debian"] == "" {
		return "", errors.New("apt knows no mirror of Debian here: name one in its sources, and run apt-get update")
	}
	var sources strings.Builder
	for _, release := range releases {
		suites := map[string]string{"Debian": release}
		if release != "sid" && !strings.HasSuffix(release, "-backports") { // which have no updates apart
			suites["Debian-Security"] = release + "-security"
		}
		for _, label := range slices.Sorted(maps.Keys(suites)) {
			if uri := mirror[label]; uri != "" {
				fmt.Fprintf(&sources, "deb [target=Packages check-valid-until=no signed-by=%s] %s %s main\n", keyring, uri, suites[label])
			}
		}
	}
	return sources.String(), nil
}

// kernelPackages names the packages with parts of a kernel. Of a series only that of the image: what
// it depends on may be gone from the archive, and up to 6.18 the image's own has all that is needed.
func (a *archive) kernelPackages(ctx context.Context, k kernel) ([]string, error) {
	if k.series != "" {
		prefix, suffix := "linux-image-"+k.series+".", "-cloud-"+k.arch
		names, err := output(ctx, "", "apt-cache", "-c", a.conf, "pkgnames", prefix)
		if err != nil {
			return nil, err
		}
		image, err := newestImage(names, prefix, suffix)
		return []string{image}, err
	}
	all, err := a.closure(ctx, "linux-image-cloud-"+k.arch)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, name := range all {
		if kernelPackage.MatchString(name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no package of a kernel is among %s", strings.Join(all, " "))
	}
	return names, nil
}

// newestImage picks the name with the highest number between a prefix and a suffix.
func newestImage(names, prefix, suffix string) (string, error) {
	best, at := "", -1
	for name := range strings.FieldsSeq(names) {
		var n int
		if _, err := fmt.Sscanf(strings.TrimPrefix(name, prefix), "%d", &n); err == nil && strings.HasSuffix(name, suffix) && n > at {
			best, at = name, n
		}
	}
	if best == "" {
		return "", fmt.Errorf("no package is named %s*%s", prefix, suffix)
	}
	return best, nil
}

// closure is the names of the packages to install for some, with themselves.
func (a *archive) closure(ctx context.Context, wanted ...string) ([]string, error) {
	plan, err := a.run(ctx, "", append([]string{"--simulate", "install"}, wanted...)...)
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(plan) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Inst" {
			names = append(names, f[1])
		}
	}
	return names, nil
}

// unpack downloads packages and unpacks them into a directory.
func (a *archive) unpack(ctx context.Context, dir string, names []string) error {
	debs := filepath.Join(dir, "debs")
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return err
	}
	if _, err := a.run(ctx, debs, append([]string{"download"}, names...)...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	if len(files) != len(names) {
		return fmt.Errorf("apt-get download: %d files of %s", len(files), strings.Join(names, ", "))
	}
	for _, file := range files {
		if _, err := output(ctx, "", "dpkg-deb", "-x", file, dir); err != nil {
			return err
		}
	}
	return os.RemoveAll(debs)
}

// ofArchive matches the fields of a package that are about its file in the archive, which dpkg refuses.
var ofArchive = regexp.MustCompile(`(?m)^(Filename|Size|MD5sum|SHA1|SHA256|SHA512): .*\n?`)

// writeStatus writes what dpkg knows of packages that it has installed, for those that were only unpacked:
// others can then be installed beside them.
func (a *archive) writeStatus(ctx context.Context, dir string, names []string) error {
	stanzas, err := output(ctx, "", "apt-cache", append([]string{"-c", a.conf, "--no-all-versions", "show"}, names...)...)
	if err != nil {
		return err
	}
	var status strings.Builder
	for stanza := range strings.SplitSeq(strings.TrimSpace(stanzas), "\n\n") {
		fmt.Fprintf(&status, "%s\nStatus: install ok installed\n\n", strings.TrimSpace(ofArchive.ReplaceAllString(stanza, "")))
	}
	for _, empty := range []string{"info", "updates", "triggers"} {
		if err := os.MkdirAll(filepath.Join(dir, empty), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "status"), []byte(status.String()), 0o644)
}

func (a *archive) run(ctx context.Context, dir string, args ...string) (string, error) {
	return output(ctx, dir, "apt-get", append([]string{"-c", a.conf, "-q"}, args...)...)
}

// packages are where the commands are that this one runs.
var packages = map[string]string{
	"apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg", "xz": "xz-utils",
	"qemu-system-x86_64": "qemu-system-x86", "qemu-system-aarch64": "qemu-system-arm",
}

// missing is the error of a command that could not be started, or nil.
func missing(err error, name string) error {
	if !errors.Is(err, exec.ErrNotFound) {
		return nil
	}
	if pkg, ok := packages[name]; ok {
		return fmt.Errorf("no %s here: install Debian's package %s", name, pkg)
	}
	return fmt.Errorf("no %s here", name)
}

// output runs a command in a directory, this one if empty, and returns what it
// prints. What it says when it fails is in the error.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	return capture(cmd)
}

func capture(cmd *exec.Cmd) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err == nil {
		return out.String(), nil
	}
	name := filepath.Base(cmd.Path)
	if gone := missing(err, name); gone != nil {
		return "", gone
	}
	return "", fmt.Errorf("%s: %w\n%s", strings.Join(append([]string{name}, cmd.Args[1:]...), " "), err, lastLines(errs.String(), 20))
}
