package top

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
	"unicode"

	tea "charm.land/bubbletea/v2"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
)

// pager shows a text.
type pager struct {
	title string
	text  []string
	first int // line at the top
}

func newPager(title string, text []string) *pager { return &pager{title: title, text: text} }

// wrapped are the lines of the text as a screen has room for them: what is too long goes on below.
func (p *pager) wrapped(width int) []string {
	var out []string
	for _, line := range p.text {
		indent := len(line) - len(strings.TrimLeft(line, " "))
		if indent > width/2 {
			indent = 0
		}
		for render.Columns(line) > width {
			head := render.FirstColumns(line, width)
			if i := strings.LastIndexByte(head, ' '); i > indent {
				head = head[:i]
			}
			out = append(out, head)
			line = strings.Repeat(" ", indent+2) + strings.TrimLeft(line[len(head):], " ")
		}
		out = append(out, line)
	}
	return out
}

func (p *pager) scroll(m *model, lines int) {
	p.first = max(0, min(p.first+lines, len(p.wrapped(m.width))-(m.body()+1)))
}

func (p *pager) key(m *model, key tea.KeyPressMsg) tea.Cmd {
	page := max(1, m.body())
	switch key.String() {
	case "up", "k":
		p.scroll(m, -1)
	case "down", "j":
		p.scroll(m, 1)
	case "pgup", "ctrl+b":
		p.scroll(m, -page)
	case "pgdown", "ctrl+f", "space":
		p.scroll(m, page)
	case "home", "g":
		p.first = 0
	case "end", "G":
		p.scroll(m, len(p.text)*100)
	case "K":
		m.over = nil
		return m.end()
	case "y":
		return m.copy()
	case "esc", "q", "enter", "?":
		m.over = nil
	}
	return nil
}

func (p *pager) lines(m *model, height int) []string {
	all := p.wrapped(m.width)
	p.first = max(0, min(p.first, len(all)-height))
	return all[p.first:min(len(all), p.first+height)]
}

func (p *pager) hint(m *model) string {
	more := ""
	if n := len(p.wrapped(m.width)) - (m.body() + 1) - p.first; n > 0 {
		more = fmt.Sprintf("   %d more lines below", n)
	}
	return "esc back   up/down scroll" + more
}

// whoMsg is what is to be said of a row.
type whoMsg struct {
	title string
	text  string
	err   error
}

func (m *model) showWho(msg whoMsg) {
	if msg.err != nil {
		m.fail(msg.err)
		return
	}
	m.over = newPager(msg.title, strings.Split(strings.TrimRight(msg.text, "\n"), "\n"))
}

// who asks who has the port of a row, and of a destination what headroom says.
func (m *model) who() tea.Cmd {
	if m.view == connsView {
		r := m.conns.selected()
		if r == nil {
			m.fail(errNoRow)
			return nil
		}
		row, n, style := r.Headroom, m.cfg.renderer(), render.Style{Width: m.width}
		return func() tea.Msg {
			var text bytes.Buffer
			err := n.HeadroomText(&text, style, []render.Headroom{row}, 0)
			return whoMsg{"headroom " + row.RemoteIP.String(), text.String(), err}
		}
	}
	q, words, err := m.portOf()
	if err != nil {
		m.fail(err)
		return nil
	}
	if len(words) > 3 { // in a network namespace
		if err := q.Narrow(map[string][]string{"netns": words[4:]}); err != nil {
			m.fail(err)
			return nil
		}
	}
	title, style := strings.Join(words[1:], " "), render.Style{Width: m.width}
	return func() tea.Msg {
		answer, err := m.cfg.Source.Port(m.ctx, q)
		if err != nil {
			return whoMsg{err: err}
		}
		defer answer.Close()
		var text bytes.Buffer
		err = answer.Text(&text, style)
		return whoMsg{title, text.String(), err}
	}
}

// prompt is where a filter is typed.
type prompt struct {
	text   []rune
	cursor int
	err    error
}

func newPrompt(text string) *prompt {
	if text != "" {
		text += " "
	}
	p := &prompt{text: []rune(text)}
	p.cursor = len(p.text)
	return p
}

// insert types a text. What is only searched for is searched for at once.
func (p *prompt) insert(m *model, text string) {
	var typed []rune
	for _, r := range text {
		if unicode.IsPrint(r) {
			typed = append(typed, r)
		}
	}
	p.text = append(p.text[:p.cursor:p.cursor], append(typed, p.text[p.cursor:]...)...)
	p.cursor += len(typed)
	p.typed(m)
}

func (p *prompt) typed(m *model) {
	p.err = nil
	if f, err := parseFilter(string(p.text)); err == nil {
		m.search(f.words)
	}
}

func (p *prompt) key(m *model, key tea.KeyPressMsg) tea.Cmd {
	switch key.String() {
	case "esc":
		m.search(m.filter.words) // as before
		m.over = nil
	case "enter":
		f, err := parseFilter(string(p.text))
		if err != nil {
			p.err = err
			return nil
		}
		m.over = nil
		return m.filtered(f)
	case "backspace", "ctrl+h":
		p.erase(m, max(0, p.cursor-1))
	case "ctrl+u":
		p.erase(m, 0)
	case "ctrl+w":
		i := p.cursor
		for i > 0 && p.text[i-1] == ' ' {
			i--
		}
		for i > 0 && p.text[i-1] != ' ' {
			i--
		}
		p.erase(m, i)
	case "delete", "ctrl+d":
		if p.cursor < len(p.text) {
			p.cursor++
			p.erase(m, p.cursor-1)
		}
	case "left", "ctrl+b":
		p.cursor = max(0, p.cursor-1)
	case "right", "ctrl+f":
		p.cursor = min(len(p.text), p.cursor+1)
	case "home", "ctrl+a":
		p.cursor = 0
	case "end", "ctrl+e":
		p.cursor = len(p.text)
	default:
		if key.Text != "" {
			p.insert(m, key.Text)
		}
	}
	return nil
}

// erase erases from a place up to the cursor.
func (p *prompt) erase(m *model, from int) {
	p.text = append(p.text[:from:from], p.text[p.cursor:]...)
	p.cursor = from
	p.typed(m)
}

func (p *prompt) lines(*model, int) []string { return nil }

func (p *prompt) hint(m *model) string {
	if p.err != nil {
		return oneLine(p.err)
	}
	return "enter: show what it lets pass   esc: as before   flags as of ls and tail, words are searched for"
}

// line is the prompt, and where the cursor is in it.
func (p *prompt) line(width int) (text string, cursor int) {
	before := render.LastColumns(string(p.text[:p.cursor]), width-2)
	text = "/" + before + string(p.text[p.cursor:])
	return render.FirstColumns(text, width), 1 + render.Columns(before)
}

// maxVictims is how many processes of a row can be ended.
const maxVictims = 9

// victimMsg are processes that may be ended, and why others are not.
type victimMsg struct {
	all  []*victim
	errs []error
	more int
}

// askToEnd asks which process to end, and how.
func (m *model) askToEnd(msg victimMsg) {
	if len(msg.all) == 0 {
		m.fail(errors.Join(msg.errs...))
		return
	}
	m.over = &question{victims: msg.all, errs: msg.errs, more: msg.more, now: sinceBoot()}
}

// question asks whether to end a process. Its victims are closed when it is answered.
type question struct {
	victims []*victim
	errs    []error
	more    int
	chosen  int
	now     time.Duration // since boot
}

func (q *question) close(but int) {
	for i, v := range q.victims {
		if i != but {
			v.close()
		}
	}
}

func (q *question) key(m *model, key tea.KeyPressMsg) tea.Cmd {
	switch key.String() {
	case "up", "k":
		q.chosen = max(0, q.chosen-1)
	case "down", "j":
		q.chosen = min(len(q.victims)-1, q.chosen+1)
	case "y":
		return q.send(m, syscall.SIGTERM)
	case "9":
		return q.send(m, syscall.SIGKILL)
	case "n", "q", "esc", "enter":
		q.close(-1)
		m.over = nil
	}
	return nil
}

// send sends a signal to the one that is chosen.
func (q *question) send(m *model, sig syscall.Signal) tea.Cmd {
	v := q.victims[q.chosen]
	if v.may != nil {
		return nil
	}
	m.over = nil
	q.close(q.chosen)
	return func() tea.Msg {
		defer v.close()
		text, err := v.send(sig)
		return doneMsg{text, err}
	}
}

func (q *question) lines(m *model, _ int) []string {
	head := "End this process?"
	if len(q.victims) > 1 {
		head = "End which of these processes?"
	}
	out := []string{m.bold(head), ""}
	for i, v := range q.victims {
		line := fmt.Sprintf("%s (pid %d, user %s), started %s ago", v.comm, v.pid, v.user, span(q.now-v.started))
		if i == q.chosen {
			out = append(out, m.reverse(pad(render.CutMiddle("> "+line, m.width, m.ellipsis()), m.width)))
		} else {
			out = append(out, render.CutMiddle("  "+line, m.width, m.ellipsis()))
		}
		if v.args != "" {
			out = append(out, render.CutMiddle("    "+v.args, m.width, m.ellipsis()))
		}
		if v.unit != "" {
			out = append(out, render.CutMiddle("    unit "+v.unit+": systemd may start it again; systemctl stop does not", m.width, m.ellipsis()))
		}
		if v.may != nil {
			out = append(out, m.red("    you may not: "+v.may.Error()))
		}
	}
	for _, err := range q.errs {
		out = append(out, render.CutMiddle("  "+oneLine(err), m.width, m.ellipsis()))
	}
	if q.more > 0 {
		out = append(out, fmt.Sprintf("  and %d more", q.more))
	}
	return out
}

func (q *question) hint(*model) string {
	choose := ""
	if len(q.victims) > 1 {
		choose = "up/down choose   "
	}
	if q.victims[q.chosen].may != nil {
		return choose + "n no"
	}
	return choose + "y SIGTERM   9 SIGKILL   n no"
}

// helpText is what the keys do, and what is not seen.
func helpText(m *model) []string {
	text := []string{
		"1 2 3 4, tab   ports, connections by destination, events, history",
		"up down        a line; pgup pgdown a page; home end the first, the last",
		"/              filter: flags as of ls and tail, as --proto tcp --lport 80-90;",
		"               other words are searched for in ports, pids, names, units,",
		"               containers, pods and addresses. esc takes the filter away",
		"a              ports: every socket, also clients and TIME-WAIT; history:",
		"               connections too",
		"s S            sort by the next column (marked); the other way round",
		"space          pause, and go on",
		"enter          what who says of the port, or headroom of the destination",
		"y              copy the line as a command (OSC 52)",
		"K              end a process that has the port, with your own rights; it asks",
		"m              mouse: wheel, lines, headings; off, the terminal selects text",
		"q ctrl+c       quit",
		"",
		"CONNS: connections accepted on the port, or its peers.",
		"WAIT: ports in TIME-WAIT. FULL: how much of the ephemeral ports towards a",
		"destination is taken; at 100% connect() fails.",
		"The screen is read again every " + m.cfg.Interval.String() + ", less often where that takes long.",
	}
	if m.cfg.Elsewhere != "" {
		text = append(text, "All of it is of "+m.cfg.Elsewhere+", where its processes are ended, too.")
	}
	notes := m.cfg.Partial
	if m.cfg.Foreign != "" {
		notes = append([]string{m.cfg.Foreign}, notes...)
	}
	if len(notes) > 0 {
		text = append(text, "", "Not all of the machine is seen:")
		for _, s := range notes {
			text = append(text, "  "+identity.Safe(s))
		}
	}
	return text
}
