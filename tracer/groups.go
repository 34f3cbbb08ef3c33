package tracer

// groups keeps processes that hold sockets together, as a server and the children it
// forked: once, however many sockets they hold. Numbers have groupBit set.
type groups struct {
	list []group
	free []uint32
}

type group struct {
	procs []uint32 // numbers of processes, each with one use
	uses  int
}

// add returns the number of a group, with one use.
func (g *groups) add(procs []uint32) uint32 {
	if n := len(g.free); n > 0 {
		i := g.free[n-1]
		g.free = g.free[:n-1]
		g.list[i] = group{procs, 1}
		return i | groupBit
	}
	g.list = append(g.list, group{procs, 1})
	return uint32(len(g.list)-1) | groupBit
}

// drop counts one use less. It returns the processes of a group that has none left, for
// their uses to be dropped.
func (g *groups) drop(i uint32) []uint32 {
	i &^= groupBit
	group := &g.list[i]
	if group.uses--; group.uses > 0 {
		return nil
	}
	procs := group.procs
	group.procs = nil
	g.free = append(g.free, i)
	return procs
}
