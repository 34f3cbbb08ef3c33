// Package render turns events and sockets into what a person or a program reads:
// one row type for each kind of output, and two encoders, text and JSON.
package render

import (
	"net/netip"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// Renderer makes rows of what a tracer tells, and text and JSON of rows, with names.
type Renderer struct{ *identity.Names }

// New returns a Renderer with these names.
func New(names *identity.Names) Renderer { return Renderer{names} }

// scope is the name of a device where it is the scope of an address.
func scope(device string, local, remote netip.Addr) string {
	if tracer.IsScoped(local) || tracer.IsScoped(remote) {
		return device
	}
	return ""
}
