package render

import (
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/porthole-dev/porthole/internal/identity"
)

// What a screen shows in columns of its own: each so that a terminal may have it.

// EachSocket makes the row of each socket that is to be listed, and calls f with it. The row is valid
// until the next.
func (n Renderer) EachSocket(sockets Sockets, f func(*Socket)) {
	mem := new(rowMemory)
	for i := range sockets.count {
		if row := n.rowOf(sockets, i, mem); row != nil {
			f(row)
		}
	}
}

// Where is what a row of a namespace and a place can be told apart by: its pod or container, else the
// network namespace if it is not the host's, else the unit; "" where none is known.
func (n Renderer) Where(id identity.NetNS, p *Place) string {
	switch owner := p.owner(); {
	case owner != "":
		return identity.Safe(owner)
	case !n.NetNS.IsHost(id):
		return "netns " + n.NetNSName(id, time.Now())
	}
	return identity.Safe(p.Label())
}

// Host is the local address of a socket, * for any, with its device.
func (s *Socket) Host() string { return endOf(s.Device, s.Index, s.V6Only).host(s.LocalIP) }

// Namespace is the network namespace of a socket.
func (s *Socket) Namespace() identity.NetNS { return s.netNS() }

// Ends are both ends of an event as tail shows them, "" where there is none.
func (ev *Event) Ends() (local, remote string) {
	at := endOf(ev.Device, ev.Index, ev.V6Only)
	if ev.LocalIP.IsValid() {
		local = string(appendEnd(nil, netip.AddrPortFrom(ev.LocalIP, ev.LocalPort), at))
		at = end{} // told
	}
	if ev.RemoteIP.IsValid() {
		remote = string(appendEnd(nil, netip.AddrPortFrom(ev.RemoteIP, ev.RemotePort), end{zone: at.zone}))
	}
	return local, remote
}

// Ends are the local address and the destination of a way to get a port, as headroom shows them.
func (h *Headroom) Ends() (from, to string) { return h.from(), h.to() }

// At is when the last happened to it.
func (r *Tenancy) At() time.Time { return r.at() }

// Cells are when it ended, how long it lasted, and what was done with which addresses, as history shows
// them.
func (r *Tenancy) Cells(now time.Time) (until, lasted, what string) {
	return r.untilCell(now), r.forCell(now), r.whatCell()
}

// Words says why an event failed, who is in the way, and what else there is to tell of it.
func (n Renderer) Words(ev *Event) string { return strings.Join(n.extra(Style{}, ev), " ") }

// Columns is how many columns of a terminal a text takes that identity.Safe lets pass.
func Columns(text string) int {
	for i := range len(text) {
		if text[i] >= utf8.RuneSelf {
			return i + wideColumns([]byte(text[i:]))
		}
	}
	return len(text)
}

// columnsOfRune is columnsOf a text of one.
func columnsOfRune(r rune) int {
	switch {
	case r < utf8.RuneSelf:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case isWide(r):
		return 2
	}
	return 1
}

// CutMiddle is a text that takes no more than so many columns: what is too long has mark, of one
// column, in its middle. Ends tell names apart better than middles do.
func CutMiddle(text string, columns int, mark string) string {
	if Columns(text) <= columns {
		return text
	}
	if columns < 1 {
		return ""
	}
	return string(cutMiddle([]byte(text), columns, mark))
}

// CutAddress is CutMiddle of an address, of which the port is kept, if there is one.
func CutAddress(text string, columns int, mark string) string {
	if Columns(text) <= columns {
		return text
	}
	if columns < 1 {
		return ""
	}
	return string(cutAddress([]byte(text), columns, mark))
}

// CutEnd is a text that takes no more than so many columns: what is too long ends with mark.
func CutEnd(text string, columns int, mark string) string {
	if Columns(text) <= columns {
		return text
	}
	if columns < 1 {
		return ""
	}
	return FirstColumns(text, columns-1) + mark
}

// FirstColumns is the beginning of a text, at most so many columns.
func FirstColumns(text string, columns int) string {
	for i, r := range text {
		if columns -= columnsOfRune(r); columns < 0 {
			return text[:i]
		}
	}
	return text
}

// LastColumns is the end of a text, at most so many columns.
func LastColumns(text string, columns int) string {
	from := len(text)
	for from > 0 {
		r, size := utf8.DecodeLastRuneInString(text[:from])
		if columns -= columnsOfRune(r); columns < 0 {
			break
		}
		from -= size
	}
	for from < len(text) { // what is put on the character before that is gone
		r, size := utf8.DecodeRuneInString(text[from:])
		if columnsOfRune(r) > 0 {
			break
		}
		from += size
	}
	return text[from:]
}

// Number is a number for people, with a suffix where it is large: 987, 12.3k, 4.5M. It takes at most
// five columns.
func Number(n uint64) string {
	switch {
	case n < 100_000:
		return strconv.FormatUint(n, 10)
	case n < 1_000_000:
		return strconv.FormatUint(n/1000, 10) + "k"
	case n < 1_000_000_000:
		return strconv.FormatFloat(float64(n/100_000)/10, 'f', 1, 64) + "M"
	}
	return strconv.FormatUint(n/1_000_000_000, 10) + "G"
}
