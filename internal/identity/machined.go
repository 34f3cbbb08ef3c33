package identity

import (
	"errors"
	"strings"
)

// machined reads what systemd-machined keeps of a machine: virtual machines are machines, too.
func machined(o owner, c claim) (*record, error) {
	if !c.named || c.runtime != runtimeMachined && c.runtime != runtimeNspawn || o.user != nil {
		return nil, nil
	}
	b, f, err := o.read("/run/systemd/machines", c.id, maxConfig)
	if errors.Is(err, errNone) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	r := &record{container: Container{ID: c.id, Name: c.id, Runtime: c.runtime}, files: []file{f}}
	for line := range strings.Lines(string(b)) {
		switch strings.TrimSpace(line) {
		case "CLASS=vm":
			r.virtual = true
		case "SERVICE=systemd-nspawn":
			r.container.Runtime = runtimeNspawn
		}
	}
	return r, nil
}
