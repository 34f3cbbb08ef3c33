package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// topAt is how many connections a second top is to bear.
	topAt = 50_000
	// topFor is how long it is measured, at least.
	topFor = 3 * time.Second
	// topFew is a number of connections a second of which top shows every event.
	topFew = 500
)

// terminal is one that a process draws on, of 200x50. What is drawn is read at once.
type terminal struct {
	*process
	master *os.File
	drawn  chan struct{} // has room for one
	gone   chan struct{} // closed once nothing is drawn any more

	mu   sync.Mutex
	text []byte
}

// openTerminal returns both sides of a terminal.
func openTerminal() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a terminal: %w", err)
	}
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	err = errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0),
		unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 200}))
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("make a terminal: %w", errors.Join(err, master.Close()))
	}
	return master, slave, nil
}

// onTerminal starts a process that draws.
func (b *bench) onTerminal(argv []string) (*terminal, error) {
	master, slave, err := openTerminal()
	if err != nil {
		return nil, err
	}
	defer slave.Close()
	cmd := b.command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.Env = append(os.Environ(), "TERM=xterm-256color", "LANG=C.UTF-8")
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", cmd, err), master.Close())
	}
	t := &terminal{process: &process{cmd: cmd, ended: make(chan error, 1)}, master: master, drawn: make(chan struct{}, 1), gone: make(chan struct{})}
	go func() { t.ended <- cmd.Wait() }()
	go t.read()
	return t, nil
}

func (t *terminal) read() {
	defer close(t.gone)
	buf := make([]byte, 1<<16)
	for {
		n, err := t.master.Read(buf)
		if err != nil {
			return
		}
		t.mu.Lock()
		t.text = append(t.text, buf[:n]...)
		t.mu.Unlock()
		select {
		case t.drawn <- struct{}{}:
		default:
		}
	}
}

// awaits waits until something is drawn, and forgets what was.
func (t *terminal) awaits(text string) error {
	timeout := time.After(readyWithin)
	for {
		t.mu.Lock()
		has := bytes.Contains(t.text, []byte(text))
		if has {
			t.text = t.text[:0]
		}
		t.mu.Unlock()
		if has {
			return nil
		}
		select {
		case <-t.drawn:
		case <-t.gone:
			return fmt.Errorf("%s has ended before it drew %q", t.cmd, text)
		case <-timeout:
			return fmt.Errorf("%s has not drawn %q within %v", t.cmd, text, readyWithin)
		}
	}
}

// follows waits until events are followed.
func (t *terminal) follows(l *listener) error {
	for range int(readyWithin / settled) {
		if err := l.cycles(10); err != nil {
			return err
		}
		time.Sleep(settled)
		t.mu.Lock()
		has := bytes.Contains(t.text, []byte("connect"))
		t.mu.Unlock()
		if has {
			return nil
		}
	}
	return fmt.Errorf("%s shows no event within %v", t.cmd, readyWithin)
}

// press presses a key.
func (t *terminal) press(key string) error {
	_, err := t.master.WriteString(key)
	return err
}

// answered is how long it takes until anything is drawn after a key, while nothing else is.
func (t *terminal) answered(key string) (time.Duration, error) {
	time.Sleep(settled) // what the key before has changed is drawn
	select {
	case <-t.drawn:
	default:
	}
	begin := time.Now()
	if err := t.press(key); err != nil {
		return 0, err
	}
	select {
	case <-t.drawn:
		return time.Since(begin), nil
	case <-time.After(readyWithin):
		return 0, fmt.Errorf("%s does not answer %q", t.cmd, key)
	}
}

func (t *terminal) close() error {
	err := t.cmd.Process.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	var exit *exec.ExitError
	if ended := <-t.ended; !errors.As(ended, &exit) { // by the signal
		err = errors.Join(err, ended)
	}
	return errors.Join(err, t.master.Close())
}

// topCost tells what top takes while connections are made, and how soon it answers a key then.
func (b *bench) topCost() error {
	l, err := b.warmListener()
	if err != nil {
		return err
	}
	defer l.close()
	b.row("top, on a terminal of 200x50, while connections are made", "", "", "", "")
	netns := strconv.Itoa(int(b.netns))
	if _, err := b.watch(b.agent(), func(*process) error {
		for _, view := range []string{"ports", "connections", "events"} {
			if err := b.topView(l, view+", of the agent", view, "--agent", "--socket", b.socket, "--netns", netns); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for _, view := range []string{"ports", "events"} {
		if err := b.topView(l, view+", of the kernel", view, "--local", "--netns", netns); err != nil {
			return err
		}
	}
	return nil
}

// views are the keys of top's, and what is drawn of each.
var views = map[string]struct{ key, drawn string }{"ports": {"1", "PROTO"}, "connections": {"2", "FREE"}, "events": {"3", "EVENT"}}

// topView measures one view.
func (b *bench) topView(l *listener, what, view string, args ...string) error {
	t, err := b.onTerminal(append([]string{b.porthole, "top"}, args...))
	if err != nil {
		return err
	}
	err = t.awaits("PROTO")
	if v := views[view]; err == nil && view != "ports" {
		err = errors.Join(t.press(v.key), t.awaits(v.drawn))
	}
	if err == nil && view == "events" {
		err = t.follows(l)
	}
	if err != nil {
		return errors.Join(err, t.close())
	}
	var used [3]used // when nothing happens, when few connections are made, when as many as can be
	for i, load := range []func() (int, error){
		func() (int, error) { time.Sleep(topFor); return 0, nil },
		func() (int, error) { return l.paced(topFew, topFor) },
		func() (n int, err error) {
			for begin := time.Now(); time.Since(begin) < topFor && err == nil; n += b.cycles {
				_, err = onLastCPU(b.cycles, l.cycles)
			}
			return n, err
		},
	} {
		if used[i], err = t.share(load); err != nil {
			return errors.Join(err, t.close())
		}
	}
	few, most := used[1], used[2]
	each := max(0, most.share()-few.share()) / (most.rate() - few.rate())
	b.row("  "+what+": when nothing happens", percent(used[0].share()), "", "", "")
	b.row(fmt.Sprintf("    at %.0f connections a second", few.rate()), percent(few.share()), "", "", "")
	b.row(fmt.Sprintf("    at %.0f", most.rate()), percent(most.share()), "", "", "")
	b.row(fmt.Sprintf("    at %d, for each more takes %.2f us", topAt, 1e6*each), percent(most.share()+each*(topAt-most.rate())), "", "", "<= 15 %")
	keys, err := t.keys(b.runs, func(stop <-chan struct{}) error {
		for {
			select {
			case <-stop:
				return nil
			default:
			}
			if _, err := onLastCPU(1000, l.cycles); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return errors.Join(err, t.close())
	}
	b.row("    a key is answered in, at most", ms(slices.Max(keys)), "", "", "<= 50 ms")
	return t.close()
}

// used is what a process took.
type used struct {
	cpu, took time.Duration
	n         int
}

// share is what it took of a CPU.
func (u used) share() float64 { return u.cpu.Seconds() / u.took.Seconds() }

// rate is how many there were a second.
func (u used) rate() float64 { return float64(u.n) / u.took.Seconds() }

func percent(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }

// share measures what the process takes for something.
func (t *terminal) share(do func() (int, error)) (used, error) {
	before, err := t.cpuTime()
	if err != nil {
		return used{}, err
	}
	begin := time.Now()
	n, err := do()
	if err != nil {
		return used{}, err
	}
	time.Sleep(settled)
	took := time.Since(begin)
	after, err := t.cpuTime()
	return used{after - before, took, n}, err
}

// paced makes so many connections a second.
func (l *listener) paced(rate int, during time.Duration) (n int, err error) {
	for begin := time.Now(); time.Since(begin) < during; n++ {
		if err := l.cycles(1); err != nil {
			return n, err
		}
		time.Sleep(time.Until(begin.Add(time.Duration(n+1) * time.Second / time.Duration(rate))))
	}
	return n, nil
}

// keys is how many milliseconds the help takes to come and to go, while a load goes on. What is shown is
// paused, and the table of ports: nothing else is drawn.
func (t *terminal) keys(n int, load func(stop <-chan struct{}) error) ([]float64, error) {
	if err := errors.Join(t.press("1"), t.press(" "), t.awaits("PAUSED")); err != nil {
		return nil, err
	}
	stop, pressed := make(chan struct{}), make(chan error, 1)
	var took []float64
	go func() { // the load is made by this thread, which is in the namespace
		defer close(stop)
		for i := range 2 * n {
			d, err := t.answered([]string{"?", "q"}[i%2])
			if err != nil {
				pressed <- err
				return
			}
			took = append(took, d.Seconds()*1e3)
		}
		pressed <- nil
	}()
	err := load(stop)
	return took, errors.Join(err, <-pressed)
}

// topMany tells what very many sockets take.
func (b *bench) topMany() error {
	netns := strconv.Itoa(int(b.netns))
	const sockets = 100_000
	stop, err := b.holdSockets(sockets, 1)
	if err != nil {
		return err
	}
	defer stop()
	b.row(fmt.Sprintf("top, with %d TCP sockets, each a line", sockets), "", "", "", "")
	idle := func(stop <-chan struct{}) error { <-stop; return nil }
	measure := func(args ...string) error {
		t, err := b.onTerminal(append([]string{b.porthole, "top", "--netns", netns}, args...))
		if err != nil {
			return err
		}
		err = errors.Join(t.awaits("PROTO"), t.press("a"), t.awaits("every socket"))
		if err == nil {
			err = t.awaits("127.0.0.1")
		}
		if err != nil {
			return errors.Join(err, t.close())
		}
		rest, err := t.share(func() (int, error) { time.Sleep(3 * topFor); return 0, nil })
		if err != nil {
			return errors.Join(err, t.close())
		}
		b.row("  "+args[0]+": of a CPU", percent(rest.share()), "", "", "<= 15 %")
		keys, err := t.keys(b.runs, idle)
		if err != nil {
			return errors.Join(err, t.close())
		}
		b.row("    a key is answered in, at most", ms(slices.Max(keys)), "", "", "<= 50 ms")
		return t.close()
	}
	if err := measure("--local"); err != nil {
		return err
	}
	_, err = b.watch(b.agent(), func(*process) error { return measure("--agent", "--socket", b.socket) })
	return err
}
