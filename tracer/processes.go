package tracer

// processes keeps each process once, for as long as something refers to it by number.
// Number 0 is the process that is not known.
type processes struct {
	list   []usedProcess
	number map[Process]uint32
	idle   []uint32 // had no use when they came here: their numbers are for others
	last   uint32   // the one asked for last: events of a process come together
}

type usedProcess struct {
	Process
	uses int
	idle bool // among the idle
}

func newProcesses() processes {
	return processes{list: make([]usedProcess, 1), number: make(map[Process]uint32)}
}

// at returns the process of a number.
func (p *processes) at(i uint32) Process { return p.list[i].Process }

// use returns the number of a process and counts one use more of it.
func (p *processes) use(process *Process) uint32 {
	if *process == (Process{}) {
		return 0
	}
	if p.list[p.last].Process != *process {
		p.last = p.find(process)
	}
	p.list[p.last].uses++
	return p.last
}

// again counts one use more of a number.
func (p *processes) again(i uint32) {
	if i != 0 {
		p.list[i].uses++
	}
}

// find returns the number of a process, new or old.
func (p *processes) find(process *Process) uint32 {
	if i, ok := p.number[*process]; ok {
		return i
	}
	i := p.free()
	p.list[i].Process = *process
	p.number[*process] = i
	return i
}

// free returns a number without a process.
func (p *processes) free() uint32 {
	for n := len(p.idle); n > 0; n-- {
		i := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.list[i].idle = false
		if p.list[i].uses == 0 {
			delete(p.number, p.list[i].Process)
			return i
		}
	}
	p.list = append(p.list, usedProcess{})
	return uint32(len(p.list) - 1)
}

// drop counts one use less.
func (p *processes) drop(i uint32) {
	if i == 0 {
		return
	}
	u := &p.list[i]
	if u.uses--; u.uses == 0 && !u.idle {
		u.idle = true
		p.idle = append(p.idle, i)
	}
}
