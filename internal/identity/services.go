// Package services names port numbers: the machine's own services file first,
// then the list of IANA.
package identity

import (
	"bufio"
	_ "embed"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
)

// iana is the Service Name and Transport Protocol Port Number Registry of IANA, what has a
// name: a line for each port, in order, with the name it has for TCP and, where that is
// another, the one for UDP; "-" is none. Text, for a table of it would be in memory whole.
//
//go:embed iana.txt
var iana string

// ServicesFile is where services(5) lives.
const ServicesFile = "/etc/services"

// PortClass is the IANA range of a port number (RFC 6335, section 6).
type PortClass string

// The ranges.
const (
	SystemPort     PortClass = "system"     // 0-1023
	RegisteredPort PortClass = "registered" // 1024-49151
	DynamicPort    PortClass = "dynamic"    // 49152-65535
)

// ClassOf returns the range port is in.
func ClassOf(port uint16) PortClass {
	switch {
	case port < 1024:
		return SystemPort
	case port < 49152:
		return RegisteredPort
	}
	return DynamicPort
}

// Services maps port and protocol to a service name. The zero value knows IANA's
// list only.
type Services struct {
	local map[serviceKey]string
}

// serviceKey is a port, and whether it is UDP's: a number, for a name is looked up for every row.
type serviceKey uint32

func serviceKeyOf(port uint16, udp bool) serviceKey {
	if udp {
		return serviceKey(port) | 1<<16
	}
	return serviceKey(port)
}

// LoadServices reads the machine's services file once; a machine without one has IANA's
// names. Later calls return the same.
var LoadServices = sync.OnceValue(func() Services {
	f, err := os.Open(ServicesFile)
	if err != nil {
		return Services{}
	}
	defer f.Close()
	return ParseServices(f)
})

// ParseServices reads a file in the format of services(5). Lines it does not understand
// are left out; the first name of a port wins.
func ParseServices(r io.Reader) Services {
	n := Services{local: make(map[serviceKey]string)}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		n.add(line)
		if err != nil {
			return n
		}
	}
}

func (n Services) add(line string) {
	line, _, _ = strings.Cut(line, "#")
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return
	}
	number, proto, ok := strings.Cut(fields[1], "/")
	port, err := strconv.ParseUint(number, 10, 16)
	if !ok || err != nil || (proto != "tcp" && proto != "udp") {
		return
	}
	k := serviceKeyOf(uint16(port), proto == "udp")
	if _, taken := n.local[k]; !taken {
		n.local[k] = fields[0]
	}
}

// Name returns the service name of a port, "" when it has none.
func (n Services) Name(port uint16, udp bool) string {
	if name, ok := n.local[serviceKeyOf(port, udp)]; ok {
		return name
	}
	return nameOfIANA(port, udp)
}

// ianaBlock is how many ports share an entry of ianaBlocks.
const ianaBlock = 8

// ianaBlocks is where in iana the lines of each block of ports begin: a name is looked up
// for every row.
var ianaBlocks = sync.OnceValue(func() *[1<<16/ianaBlock + 1]uint32 {
	var at [1<<16/ianaBlock + 1]uint32
	block, offset := 0, 0
	for line := range strings.Lines(iana) {
		number, _, _ := strings.Cut(line, " ")
		port, _ := strconv.Atoi(number)
		for ; block <= port/ianaBlock; block++ {
			at[block] = uint32(offset)
		}
		offset += len(line)
	}
	for ; block < len(at); block++ {
		at[block] = uint32(offset)
	}
	return &at
})

func nameOfIANA(port uint16, udp bool) string {
	at, block := ianaBlocks(), port/ianaBlock
	for line := range strings.Lines(iana[at[block]:at[block+1]]) {
		number, names, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if is, _ := strconv.Atoi(number); is != int(port) {
			continue
		}
		name, other, differ := strings.Cut(names, " ")
		if udp && differ {
			name = other
		}
		if name == "-" {
			return ""
		}
		return name
	}
	return ""
}

// Number returns the port of a service by its name, of TCP or of UDP; ok is false where it has
// none. The machine's own names win over IANA's.
func (n Services) Number(name string, udp bool) (port uint16, ok bool) {
	for k, local := range n.local {
		if strings.EqualFold(local, name) && k == serviceKeyOf(uint16(k), udp) && (!ok || uint16(k) < port) {
			port, ok = uint16(k), true
		}
	}
	if ok || name == "-" {
		return port, ok
	}
	for line := range strings.Lines(iana) {
		number, names, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		own, other, differ := strings.Cut(names, " ")
		if udp && differ {
			own = other
		}
		if strings.EqualFold(own, name) {
			is, err := strconv.ParseUint(number, 10, 16)
			return uint16(is), err == nil
		}
	}
	return 0, false
}

// Names tells whether the machine's own services file names a port, of TCP or of UDP.
func (n Services) Names(port uint16) bool {
	_, tcp := n.local[serviceKeyOf(port, false)]
	_, udp := n.local[serviceKeyOf(port, true)]
	return tcp || udp
}
