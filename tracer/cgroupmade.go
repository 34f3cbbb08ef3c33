package tracer

// Cgroup is a cgroup of the v2 hierarchy that was made. Cgroups of that hierarchy cannot be renamed.
type Cgroup struct {
	ID     uint64 // which the kernel gives to no other
	Parent uint64 // id of the one it is in
	UID    uint32 // whose it is, in the initial user namespace: who made it
	Name   string // of its directory, any bytes
}
