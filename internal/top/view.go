package top

import (
	"fmt"
	"strings"

	tea "charm.land/bubbletea/v2"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
)

// The screen is a line of views, one that says what is shown, a heading, rows, and one that says what
// can be done.
const (
	headLine  = 2
	besides   = 4 // lines that are no rows
	minWidth  = 50
	minHeight = 8
)

// body is how many rows there is room for.
func (m *model) body() int { return max(0, m.height-besides) }

// View implements tea.Model.
func (m *model) View() tea.View {
	v := tea.NewView(strings.Join(m.screen(), "\n"))
	v.AltScreen = true
	v.WindowTitle = "porthole top"
	if m.mouse {
		v.MouseMode = tea.MouseModeCellMotion
	}
	if p, ok := m.over.(*prompt); ok {
		_, x := p.line(m.width)
		v.Cursor = tea.NewCursor(x, 1)
	}
	return v
}

// screen is all lines, none of which is wider than the terminal.
func (m *model) screen() []string {
	if m.width < minWidth || m.height < minHeight {
		return []string{render.CutEnd(fmt.Sprintf("a terminal of %dx%d or more is needed", minWidth, minHeight), m.width, m.ellipsis())}
	}
	out := append(make([]string, 0, m.height), m.tabs())
	switch over := m.over.(type) {
	case *prompt:
		text, _ := over.line(m.width)
		out = append(out, pad(text, m.width))
	case *pager:
		out = append(out, m.bold(m.cut(over.title)))
		out = append(out, over.lines(m, m.body()+1)...)
		return m.finish(out)
	case overlay:
		out = append(out, "")
		out = append(out, over.lines(m, m.body()+1)...)
		return m.finish(out)
	default:
		out = append(out, m.summary())
	}
	l := m.list()
	out = append(out, m.bold(l.head(m.look, m.width)))
	if shown, _ := l.counts(); shown > 0 {
		out = append(out, l.lines(m.look, m.width, m.body())...)
	} else {
		out = append(out, m.empty()...)
	}
	return m.finish(out)
}

// finish adds what is at the bottom.
func (m *model) finish(out []string) []string {
	out = out[:min(len(out), m.height-1)]
	for len(out) < m.height-1 {
		out = append(out, "")
	}
	return append(out, m.bottom())
}

func (m *model) cut(text string) string { return render.CutEnd(text, m.width, m.ellipsis()) }

func tabName(v viewID) string { return fmt.Sprintf(" %d %s ", v+1, viewNames[v]) }

// tabAt is the view whose name is at x.
func (m *model) tabAt(x int) viewID {
	for v := range viewCount {
		if x -= len(tabName(v)); x < 0 {
			return v
		}
	}
	return m.view
}

// tabs are the views, and who answers.
func (m *model) tabs() string {
	var b strings.Builder
	used := 0
	for v := range viewCount {
		name := tabName(v)
		used += len(name)
		if v == m.view {
			name = m.reverse(name)
		}
		b.WriteString(name)
	}
	right := m.cfg.From
	if len(m.cfg.Partial) > 0 {
		right = "partial view (?) " + right
	}
	if m.paused {
		right = "PAUSED " + right
	}
	if gap := m.width - used - len(right); gap > 0 {
		b.WriteString(strings.Repeat(" ", gap))
		if m.paused {
			right = m.yellow(right)
		}
		b.WriteString(right)
	}
	return b.String()
}

// plural counts things.
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// summary says how much is shown of what.
func (m *model) summary() string {
	shown, all := m.list().counts()
	what := [viewCount]string{"port", "destination", "event", "line"}[m.view]
	text := plural(all, what)
	if m.view == eventsView {
		text = m.counted()
	}
	if shown != all {
		text = fmt.Sprintf("%d of %s", shown, text)
	}
	if m.view == portsView && (m.all || m.filter.asksForAll()) {
		text += ", of every socket"
	}
	if m.view == historyView {
		if all == maxTenancies {
			text = "the latest " + text
		}
		if text += " of listeners, binds and failures"; m.all || m.filter.asksForAll() {
			text += ", and of connections"
		}
	}
	if names := m.filter.without(m.view.kind()); len(names) > 0 {
		text += "   not here: " + strings.Join(names, " ")
	}
	if m.filter.text != "" {
		text += "   filter: " + identity.Safe(m.filter.text)
	}
	return m.cut(text)
}

// counted counts events.
func (m *model) counted() string {
	text := fmt.Sprintf("%d events", m.seen)
	if m.rate != "" {
		text += ", " + m.rate
	}
	if m.unshown > 0 {
		text += fmt.Sprintf(", %s only counted", render.Number(m.unshown))
	}
	if m.lost > 0 {
		text += fmt.Sprintf(", %s lost", render.Number(m.lost))
	}
	return text
}

// empty is what is there instead of rows.
func (m *model) empty() []string {
	s := &m.states[m.view]
	_, all := m.list().counts()
	switch {
	case s.err != nil:
		return nil // it is at the bottom
	case m.view == eventsView && s.asking:
		return []string{"", "  attaching ..."}
	case m.view == eventsView:
		return []string{"", "  nothing has happened yet"}
	case s.at.IsZero():
		return []string{"", "  reading ..."}
	case all > 0 || m.filter.text != "":
		return []string{"", "  nothing that the filter lets pass; esc takes it away"}
	}
	return []string{"", "  nothing"}
}

// bottom is what there is to say, else what can be done.
func (m *model) bottom() string {
	s := &m.states[m.view]
	switch {
	case m.message != "" && m.bad:
		return m.red(m.cut(m.message))
	case m.message != "":
		return m.cut(m.message)
	case m.over != nil:
		if p, ok := m.over.(*prompt); ok && p.err != nil {
			return m.red(m.cut(p.hint(m)))
		}
		return m.faint(m.cut(m.over.hint(m)))
	case s.err != nil:
		return m.red(m.cut(oneLine(s.err)))
	case s.note != "":
		return m.yellow(m.cut(identity.Safe(s.note)))
	}
	return m.faint(m.cut("q quit  ? help  / filter  s sort  space pause  y copy  " + [viewCount]string{
		portsView: "enter who  K end  a all", connsView: "enter headroom  K end", eventsView: "enter who", historyView: "enter who  a connections",
	}[m.view]))
}
