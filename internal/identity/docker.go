package identity

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
)

// docker reads config.v2.json of a container, which Docker replaces when it renames one.
func docker(o owner, c claim) (*record, error) {
	if c.named {
		return nil, nil
	}
	dirs, err := o.dockerDirs()
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		var config struct {
			ID     string
			Name   string
			Config struct {
				Image  string
				Labels map[string]string
			}
		}
		f, err := o.parse(filepath.Join(dir, "containers"), filepath.Join(c.id, "config.v2.json"), &config)
		switch {
		case errors.Is(err, errNone):
			if made, err := o.exists(filepath.Join(dir, "containers"), c.id); made || err != nil {
				return nil, errors.Join(errUnfinished, err)
			}
			continue
		case err != nil:
			return nil, err
		case config.ID != "" && config.ID != c.id:
			continue
		}
		r := &record{container: Container{ID: c.id, Name: strings.TrimPrefix(config.Name, "/"), Image: config.Config.Image, Runtime: runtimeDocker}, files: []file{f}}
		r.pod = podOfLabels(config.Config.Labels)
		r.place, err = o.bundlePlace(c)
		return r, err
	}
	return nil, nil
}

// dockerDirs are the directories that a Docker may keep its data in.
func (o owner) dockerDirs() ([]string, error) {
	config, standard := "/etc/docker", []string{"/var/lib/docker", "/var/snap/docker/common/var-lib-docker"}
	if o.user != nil && o.home == "" {
		return nil, nil
	} else if o.user != nil {
		config, standard = filepath.Join(o.home, ".config/docker"), []string{filepath.Join(o.home, ".local/share/docker")}
	}
	b, _, err := o.read(config, "daemon.json", maxConfig)
	if errors.Is(err, errNone) {
		return standard, nil
	} else if err != nil {
		return nil, err
	}
	var daemon struct {
		Root string `json:"data-root"`
	}
	if json.Unmarshal(b, &daemon) == nil && filepath.IsAbs(daemon.Root) { // what is wrong Docker does not read either
		return append([]string{daemon.Root}, standard...), nil
	}
	return standard, nil
}
