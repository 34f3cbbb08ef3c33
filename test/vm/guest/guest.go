// Package guest is what the host and init, in the VM, say to each other.
package guest

// Port is the name of the virtio port for messages. The kernel's own console is
// another, so neither can break a line of the other.
const Port = "porthole"

// Plan is what init does, from the image's PlanFile.
type Plan struct {
	Modules []string `json:"modules"` // files, those that others need first
	Systemd bool     `json:"systemd"` // is process 1, and starts what runs the jobs
	Jobs    []Job    `json:"jobs"`
}

// PlanFile is where the image has the plan.
const PlanFile = "/plan.json"

// Job is one command.
type Job struct {
	Name string   `json:"name"`
	Argv []string `json:"argv"`
	Env  []string `json:"env,omitempty"`
}

// Message is one line on the port. The first has Kernel, then each job has many
// with Output and a last one with Exit.
type Message struct {
	Kernel  string  `json:"kernel,omitempty"` // as uname -r says
	Job     string  `json:"job,omitempty"`
	Output  string  `json:"output,omitempty"` // a line
	Exit    *int    `json:"exit,omitempty"`   // -1 after a signal
	Seconds float64 `json:"seconds,omitempty"`
}

// What a machine with a network has: qemu's, with a way out to this machine's loopback and one in to a port.
const (
	Address = "10.0.2.15" // of the machine, in a /24
	Host    = "10.0.2.2"  // leads to 127.0.0.1 of the host
	Metrics = "9435"      // port
)
