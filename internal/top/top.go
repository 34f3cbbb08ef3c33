// Package top is porthole top: what has ports, what is connected, what happens and what was, live on a
// terminal. A model is changed by messages and drawn as text; whatever waits, for a source or for a
// process, is a command that ends in a message.
package top

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
)

// Config says what is shown, and where.
type Config struct {
	Source source.Source
	Names  *identity.Names // of this machine
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
	p := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(cfg.In), tea.WithOutput(cfg.Out),
		tea.WithoutSignalHandler(), tea.WithFPS(framesPerSecond))
	continued := make(chan os.Signal, 1)
	signal.Notify(continued, syscall.SIGCONT)
	var keeping sync.WaitGroup
	keeping.Go(func() { keepTerminal(ctx, p, m.suspend, continued) })
	_, err = p.Run()
	signal.Stop(continued)
	cancel()
	keeping.Wait()
	m.close()
	if errors.Is(err, tea.ErrProgramKilled) && errors.Is(err, context.Canceled) {
		return nil // as asked for
	}
	return err
}

// keepTerminal stops the process when the user wants that, and takes the terminal again whenever it goes on:
// a shell has used it meanwhile.
func keepTerminal(ctx context.Context, p *tea.Program, suspend <-chan struct{}, continued <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-continued:
			_ = p.ReleaseTerminal()
		case <-suspend:
			_ = p.ReleaseTerminal()
			_ = syscall.Kill(0, syscall.SIGTSTP)
			select { // no shell waits for it where the terminal runs nothing else: then it is not stopped
			case <-continued:
			case <-time.After(stopsWithin):
			}
		}
		_ = p.RestoreTerminal() // without a terminal the program ends
		p.Send(tea.ClearScreen())
	}
}

// stopsWithin is how long it may take until a process is stopped after the signal.
const stopsWithin = 200 * time.Millisecond

// renderer makes rows' words.
func (c *Config) renderer() render.Renderer { return render.New(c.Names) }
