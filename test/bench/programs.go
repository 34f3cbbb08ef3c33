package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// usage is how long a BPF program ran, and how often.
type usage struct {
	time  time.Duration
	count uint64
}

// programs runs a load and returns what every BPF program of the process did
// meanwhile, by name.
func (p *process) programs(load func() error) (map[string]usage, error) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return nil, fmt.Errorf("enable BPF statistics: %w", err)
	}
	defer stats.Close()
	before, err := p.usage()
	if err != nil {
		return nil, err
	}
	if err := load(); err != nil {
		return nil, err
	}
	after, err := p.usage()
	for name, u := range after {
		after[name] = usage{u.time - before[name].time, u.count - before[name].count}
	}
	return after, err
}

// othersTrace tells whether another porthole has programs in the kernel: then
// "nothing attached" is not what it says.
func othersTrace() (bool, error) {
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("list BPF programs: %w", err)
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, os.ErrNotExist) {
			continue // gone meanwhile
		} else if err != nil {
			return false, fmt.Errorf("open BPF program %d: %w", id, err)
		}
		info, err := p.Info()
		p.Close()
		if err != nil {
			return false, fmt.Errorf("read BPF program %d: %w", id, err)
		}
		if strings.HasPrefix(info.Name, "ph_") {
			return true, nil
		}
	}
}

// usage reads the statistics of the programs that the process has attached. It
// goes by the process's descriptors and not by name, for another porthole may
// run too.
func (p *process) usage() (map[string]usage, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", p.cmd.Process.Pid))
	if err != nil {
		return nil, err
	}
	ids := make(map[ebpf.ProgramID]bool)
	for _, name := range files {
		info, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // closed meanwhile
			return nil, fmt.Errorf("find BPF programs: %w", err)
		}
		for line := range strings.Lines(string(info)) {
			if id, ok := strings.CutPrefix(line, "prog_id:"); ok {
				n, err := strconv.ParseUint(strings.TrimSpace(id), 10, 32)
				if err != nil {
					return nil, fmt.Errorf("find BPF programs: %w", err)
				}
				ids[ebpf.ProgramID(n)] = true
			}
		}
	}
	used := make(map[string]usage)
	for id := range ids {
		if err := addUsage(used, id); err != nil {
			return nil, fmt.Errorf("read statistics of BPF program %d: %w", id, err)
		}
	}
	return used, nil
}

func addUsage(used map[string]usage, id ebpf.ProgramID) error {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return err
	}
	stats, err := p.Stats()
	if err != nil {
		return err
	}
	u := used[info.Name]
	used[info.Name] = usage{u.time + stats.Runtime, u.count + stats.RunCount}
	return nil
}
