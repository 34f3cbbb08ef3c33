// Package top is porthole top: what has ports, what is connected, what happens and what was, live on a
// terminal. A model is changed by messages and drawn as text; whatever waits, for a source or for a
// process, is a command that ends in a message.
package top

import (
	"context"
	"errors"
	"io"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
)

// Config says what is shown, and where.
type Config struct {
	Source source.Source
	Names  *identity.Names // of the machine that is shown
	// Elsewhere is that machine, as of source.Source; Reach are words of a command that have it asked.
	Elsewhere string
	Reach     []string
	// Filter is what is shown at first, as it is typed.
	Filter string
	// Interval is how often what is shown is read again, at most: reading takes a tenth of a processor
	// at most.
	Interval time.Duration
	Color    bool
	ASCII    bool // the terminal does not show UTF-8
	// From is who answers, in a word.
	From string
	// Partial says what of the machine is not seen, one sentence each.
	Partial []string
	// Foreign says why process numbers are not those of this process's namespace; "": they are.
	Foreign string
	// Notes are sentences to be shown as they come; nil: there are none.
	Notes <-chan string

	// In and Out are the terminal.
	In  io.Reader
	Out io.Writer
}

// framesPerSecond is how often the terminal is written to, at most: a key is answered within 17 ms. It is
// written to only where anything has changed.
const framesPerSecond = 60

// Run shows the screen until the user ends it, or ctx ends. The terminal is as it was when it returns.
// The error names a filter that is not understood before anything is shown.
func Run(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m, err := newModel(ctx, cfg)
	if err != nil {
		return err
	}
	_, err = tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(cfg.In), tea.WithOutput(cfg.Out),
		tea.WithoutSignalHandler(), tea.WithFPS(framesPerSecond)).Run()
	cancel()
	m.close()
	if errors.Is(err, tea.ErrProgramKilled) && errors.Is(err, context.Canceled) {
		return nil // as asked for
	}
	return err
}

// renderer makes rows' words.
func (c *Config) renderer() render.Renderer { return render.New(c.Names) }
