package render

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"iter"
	"math"
	"net/netip"
	"strconv"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/store"
	"github.com/porthole-dev/porthole/tracer"
)

// Past makes the row of what a history on disk has.
func (n Renderer) Past(r *store.Row) Tenancy {
	row := Tenancy{
		Proto: r.Proto.String(), LocalIP: r.Local.Addr(), LocalPort: r.Local.Port(), NetNS: r.NetNS, Cookie: r.NetNSCookie, NetNSName: r.Space, MPTCP: r.MPTCP,
		TimeWait: r.TimeWait, UntilAbout: r.About, Index: r.Device, Cursor: r.Cursor,
	}
	if r.Remote.IsValid() {
		row.RemoteIP, row.RemotePort = r.Remote.Addr(), r.Remote.Port()
	}
	if r.Role != 0 {
		row.Role = r.Role.String()
	}
	if r.Errno != 0 {
		row.Error = (&tracer.Event{Errno: r.Errno}).ErrnoName()
	}
	switch {
	case r.Kind == store.Refused:
		row.Time, row.Event = Stamp{r.Until}, r.Event.String()
		row.HeldBy, row.HeldByMore = inTheWay(r.HeldBy), r.HeldByMore
	case r.SinceUnknown && r.Kind != store.Folded:
		row.KnownSince = Stamp{r.Since}
	default:
		row.Since = Stamp{r.Since}
	}
	switch r.Kind {
	case store.Holding:
		row.Open = true
	case store.Folded:
		row.Until, row.Folded = Stamp{r.Until}, r.Count
		if r.OfRefused {
			row.Event = r.Event.String()
		}
	case store.Held:
		row.Until = Stamp{r.Until}
		if !r.SinceUnknown {
			row.DurationNS = r.Took.Nanoseconds()
		}
		if r.UntilUnknown {
			row.UntilKnown = new(bool)
		}
	}
	if p := r.Owner; p != nil {
		row.PID, row.Comm, row.UID, row.Place = p.PID, p.Comm, &p.UID, placeOf(p.Place)
		row.Exe, row.Args, row.ArgsCut = p.Exe, p.Args, p.ArgsCut
	}
	return row
}

func inTheWay(sockets []store.HeldBy) (out []InTheWay) {
	for i := range sockets {
		s := &sockets[i]
		in := InTheWay{
			State: s.State.String(), Role: s.Role.String(), LocalIP: s.Local.Addr(), LocalPort: s.Local.Port(), RemoteIP: s.Remote.Addr(), RemotePort: s.Remote.Port(),
			Holders: []PastProcess{}, HoldersMore: s.More,
		}
		if s.Owner != nil {
			owner := pastProcess(s.Owner)
			in.Owner = &owner
		}
		for _, p := range s.Holders {
			in.Holders = append(in.Holders, pastProcess(p))
		}
		out = append(out, in)
	}
	return out
}

func pastProcess(p *store.Process) PastProcess {
	return PastProcess{PID: p.PID, Comm: p.Comm, UID: p.UID, Place: placeOf(p.Place), Exe: p.Exe, Args: p.Args, ArgsCut: p.ArgsCut}
}

// heldBy says who was in the way of a refused bind, "" where that is not known.
func (r *Tenancy) heldBy() string {
	if len(r.HeldBy) == 0 {
		return ""
	}
	in := &r.HeldBy[0]
	text := "held by a socket in " + in.State
	switch {
	case len(in.Holders) > 0:
		p := &in.Holders[0]
		text = fmt.Sprintf("held by %s (%d)", identity.Safe(p.Comm), p.PID)
		if label := p.Place.Label(); label != "" {
			text += " of " + identity.Safe(label)
		}
	case in.Owner != nil:
		text = fmt.Sprintf("held by a %s of %s (%d)", in.Role, identity.Safe(in.Owner.Comm), in.Owner.PID)
	}
	if more := len(r.HeldBy) - 1 + r.HeldByMore; more > 0 {
		text += fmt.Sprintf(", and %d more sockets", more)
	}
	return text
}

// at is when the last happened to it.
func (r *Tenancy) at() time.Time {
	for _, t := range []Stamp{r.Until, r.Time, r.Since, r.KnownSince} {
		if !t.IsZero() {
			return t.Time
		}
	}
	return time.Time{}
}

// HistoryJSON writes rows, one a line, as they come.
func HistoryJSON(w io.Writer, rows iter.Seq2[*Tenancy, error]) error {
	for row, err := range rows {
		if err != nil {
			return err
		}
		if err := WriteJSON(w, row); err != nil {
			return err
		}
	}
	return nil
}

const (
	// leastWhat and mostProcess are how wide columns are where a line is too long: addresses give way to
	// names.
	leastWhat, mostProcess = 26, 28
)

// HistoryText writes rows as a table that is as wide as the terminal at most, with whole values where there is none.
func HistoryText(w io.Writer, style Style, rows []Tenancy, now time.Time) error {
	columns := []Column{{Name: "UNTIL"}, {Name: "FOR"}, {Name: "PROTO"}, {Name: "WHAT", Address: true}, {Name: "PROCESS"}}
	const what, process = 3, 4
	width := cmp.Or(style.Width, math.MaxInt32)
	lines := make([][]string, len(rows))
	widths := make([]int, len(columns))
	for i := range columns {
		widths[i] = len(columns[i].Name)
	}
	for i := range rows {
		r := &rows[i]
		lines[i] = []string{r.untilCell(now), r.forCell(now), r.Proto, r.whatCell(), r.processCell(width)}
	}
	for _, line := range lines {
		for i := range line {
			widths[i] = max(widths[i], columnsOf([]byte(line[i])))
		}
	}
	room := width - process // a space between columns
	for _, n := range widths[:what] {
		room -= n
	}
	whatRoom := max(leastWhat, room-min(widths[process], mostProcess))
	room -= min(widths[what], whatRoom)
	for i := range rows {
		line := lines[i]
		line[what], line[process] = CutMiddle(line[what], whatRoom, "…"), rows[i].processCell(room)
	}
	var table bytes.Buffer
	if err := Table(&table, style, columns, lines); err != nil {
		return err
	}
	// What is more of a row goes below it.
	out := make([]byte, 0, table.Len())
	i := -1 // the head
	for line := range bytes.Lines(table.Bytes()) {
		out = append(out, line...)
		if i >= 0 && i < len(rows) {
			if text := rows[i].heldBy(); text != "" {
				out = append(out, CutMiddle("          "+text, width, "…")...)
				out = append(out, '\n')
			}
		}
		i++
	}
	_, err := w.Write(out)
	return err
}

// untilCell is when it ended: about, where that was not seen; with a question mark, where it is the last
// that is known.
func (r *Tenancy) untilCell(now time.Time) string {
	switch text := moment(r.at(), now); {
	case r.Open:
		return "now"
	case r.UntilKnown != nil:
		return text + "?"
	case r.UntilAbout:
		return "~" + text
	default:
		return text
	}
}

// forCell is how long it lasted, of a refused call why it was.
func (r *Tenancy) forCell(now time.Time) string {
	since, more := r.Since.Time, ""
	if !r.KnownSince.IsZero() {
		since, more = r.KnownSince.Time, ">"
	}
	switch {
	case r.Folded > 0:
		return strconv.FormatUint(uint64(r.Folded), 10) + "x"
	case !r.Time.IsZero():
		return r.Error
	case r.Open:
		return more + briefly(now.Sub(since))
	case r.DurationNS > 0:
		return briefly(time.Duration(r.DurationNS))
	case more != "":
		return more + briefly(r.Until.Sub(since))
	}
	return "?"
}

// whatCell is what was done with which addresses.
func (r *Tenancy) whatCell() string {
	local := AddrPort(netip.AddrPortFrom(r.LocalIP, r.LocalPort))
	if r.LocalIP.IsUnspecified() {
		local = "*:" + strconv.Itoa(int(r.LocalPort))
	}
	remote := AddrPort(netip.AddrPortFrom(r.RemoteIP, r.RemotePort))
	hasRemote := r.RemoteIP.IsValid()
	switch {
	case r.Event != "" && hasRemote:
		return r.Event + " " + remote
	case r.Event != "":
		return r.Event + " " + local
	case r.Role == "client" && hasRemote && r.LocalPort == 0:
		return "to " + remote
	case r.Role == "client" && hasRemote:
		return fmt.Sprintf("%d to %s", r.LocalPort, remote)
	case hasRemote:
		return fmt.Sprintf("%d from %s", r.LocalPort, remote)
	case r.Role == "listener" && r.Folded == 0:
		return "listen " + local
	case r.Role == "server":
		return "accepted on " + local
	case r.LocalPort == 0 && r.Folded > 0:
		return "others"
	}
	return "bound " + local
}

// processCell is who it was, in so many columns.
func (r *Tenancy) processCell(room int) string {
	text, failed := "?", ""
	if r.Error != "" && r.Time.IsZero() {
		failed = " " + r.Error
	}
	if r.PID != 0 {
		pid := fmt.Sprintf(" (%d)", r.PID)
		text = CutMiddle(identity.Safe(r.Comm), max(room-len(pid)-len(failed), 3), "…") + pid
	}
	text += failed
	if label := r.Place.Label(); label != "" {
		label = identity.Safe(label)
		if left := room - columnsOf([]byte(text)) - 1; left >= min(8, len(label)) {
			text += " " + CutMiddle(label, left, "…")
		}
	}
	return CutMiddle(text, room, "…")
}

// moment is a time as people in its zone say it: of today the time alone.
func moment(t, now time.Time) string {
	t, now = t.Local(), now.Local()
	switch {
	case t.Year() == now.Year() && t.YearDay() == now.YearDay():
		return t.Format("15:04:05")
	case now.Sub(t) < 180*24*time.Hour:
		return t.Format("Jan _2 15:04:05")
	}
	return t.Format("2006-01-02 15:04")
}

// briefly is a time in two units at most.
func briefly(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return duration(d)
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		if d = d.Round(time.Second); d%time.Minute == 0 && d < time.Hour {
			return fmt.Sprintf("%dm", int(d.Minutes()))
		}
		return d.String()
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}
