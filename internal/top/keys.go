package top

import (
	"errors"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/porthole-dev/porthole/internal/identity"
)

// key answers a key.
func (m *model) key(key tea.KeyPressMsg) tea.Cmd {
	m.message = ""
	switch key.String() {
	case "ctrl+c":
		return tea.Quit
	case "ctrl+z":
		return tea.Suspend
	}
	if m.over != nil {
		return m.over.key(m, key)
	}
	if cmd, ok := m.moved(key.String()); ok {
		return cmd
	}
	switch key.String() {
	case "q":
		return tea.Quit
	case "1", "2", "3", "4":
		return m.show(viewID(key.String()[0] - '1'))
	case "tab", "right", "l":
		return m.show((m.view + 1) % viewCount)
	case "shift+tab", "left", "h":
		return m.show((m.view + viewCount - 1) % viewCount)
	case "/":
		m.over = newPrompt(m.filter.text)
	case "esc":
		return m.filtered(filter{})
	case "space":
		m.pause()
	case "s":
		m.list().nextSort(m.width)
	case "S":
		m.list().reverse()
	case "a":
		m.all = !m.all
		return m.askNow()
	case "m":
		m.mouse = !m.mouse
	case "?":
		m.over = newPager("Help", helpText(m))
	case "enter":
		return m.who()
	case "y":
		return m.copy()
	case "K":
		return m.end()
	}
	return nil
}

// moved moves the cursor; ok is false where the key is not for that.
func (m *model) moved(key string) (cmd tea.Cmd, ok bool) {
	l, page := m.list(), max(1, m.body()-1)
	switch key {
	case "up", "k":
		l.move(-1)
	case "down", "j":
		l.move(1)
	case "pgup", "ctrl+b":
		l.move(-page)
	case "pgdown", "ctrl+f":
		l.move(page)
	case "home", "g":
		l.goTo(0)
	case "end", "G":
		shown, _ := l.counts()
		l.goTo(shown)
		m.events.follow = m.events.follow || m.view == eventsView
	default:
		return nil, false
	}
	return nil, true
}

// clicked answers the mouse, if the user wants it to be.
func (m *model) clicked(msg tea.MouseMsg) tea.Cmd {
	mouse := msg.Mouse()
	if m.over != nil {
		if p, ok := m.over.(*pager); ok {
			switch mouse.Button {
			case tea.MouseWheelUp:
				p.scroll(m, -3)
			case tea.MouseWheelDown:
				p.scroll(m, 3)
			}
		}
		return nil
	}
	switch mouse.Button {
	case tea.MouseWheelUp:
		m.list().move(-3)
	case tea.MouseWheelDown:
		m.list().move(3)
	case tea.MouseLeft:
		if _, ok := msg.(tea.MouseClickMsg); !ok {
			return nil
		}
		switch {
		case mouse.Y == 0:
			return m.show(m.tabAt(mouse.X))
		case mouse.Y == headLine:
			m.list().sortBy(m.list().columnAt(m.width, mouse.X))
		case mouse.Y > headLine && mouse.Y <= headLine+m.body():
			if shown, _ := m.list().counts(); m.list().firstLine()+mouse.Y-headLine-1 < shown {
				m.list().goTo(m.list().firstLine() + mouse.Y - headLine - 1)
			}
		}
	}
	return nil
}

// copy has the terminal copy the line as a command that asks about it.
func (m *model) copy() tea.Cmd {
	line, err := m.commandOf()
	if err != nil {
		m.fail(err)
		return nil
	}
	m.say("copied, where the terminal allows it (OSC 52): " + line)
	return tea.SetClipboard(line)
}

// commandOf is the command that asks about a line.
func (m *model) commandOf() (string, error) {
	if m.view == connsView {
		r := m.conns.selected()
		if r == nil {
			return "", errNoRow
		}
		words := []string{"porthole", "headroom"}
		if r.RemotePort != 0 {
			words = append(words, "--to", r.to, "--from", r.from)
		} else {
			words = append(words, "--proto", r.proto, "--op", r.Op)
		}
		if !m.cfg.Names.NetNS.IsHost(r.netns) {
			words = append(words, "--netns", space(m.cfg.Names.NetNS.Name(r.netns, time.Now()), r.netns))
		}
		return command(append(words, m.cfg.Reach...)...), nil
	}
	_, words, err := m.portOf()
	if err != nil {
		return "", err
	}
	return command(append(words, m.cfg.Reach...)...), nil
}

// end asks whether to end a process that has the port.
func (m *model) end() tea.Cmd {
	var all []process
	had := m.states[m.view].had
	switch m.view {
	case portsView:
		if r := m.ports.selected(); r != nil {
			all = r.holders
		}
	case connsView:
		if r := m.conns.selected(); r != nil {
			all = r.holders
		}
	default:
		m.fail(errors.New("this is what was: what has a port now is in ports (1) and connections (2)"))
		return nil
	}
	switch {
	case len(all) == 0:
		m.fail(errors.New("no process is known to have it"))
		return nil
	case m.cfg.Elsewhere != "":
		m.fail(errors.New("end it there: it is on " + m.cfg.Elsewhere))
		return nil
	case m.cfg.Foreign != "":
		m.fail(errors.New(m.cfg.Foreign))
		return nil
	}
	return openVictims(all, had)
}

// openVictims opens processes; whatever cannot be is said.
func openVictims(all []process, had time.Duration) tea.Cmd {
	return func() tea.Msg {
		var msg victimMsg
		for _, p := range all[:min(len(all), maxVictims)] {
			if v, err := openVictim(p, had); err != nil {
				msg.errs = append(msg.errs, &victimError{p, err})
			} else {
				msg.all = append(msg.all, v)
			}
		}
		msg.more = len(all) - maxVictims
		return msg
	}
}

type victimError struct {
	process
	err error
}

func (e *victimError) Error() string {
	return identity.Safe(e.comm) + " (pid " + number(e.pid) + "): " + e.err.Error()
}

func (e *victimError) Unwrap() error { return e.err }
