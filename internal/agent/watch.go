package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/porthole-dev/porthole/tracer"
)

const (
	// lookEvery is how often the agent looks after itself, at least.
	lookEvery = 10 * time.Second
	// stuckAfter is how long the reader of events has to go round, at least: an idle one
	// does every few seconds, one on a huge machine reads its sockets in between.
	stuckAfter = 15 * time.Second
)

// watch tells systemd that the agent is ready, that it lives, as often as systemd
// wants to hear it, and that it stops; and the log what was lost.
func (a *agent) watch(ctx context.Context, metrics, remote []string) error {
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("read WATCHDOG_USEC: %w", err)
	}
	every := lookEvery
	if watchdog > 0 {
		every = min(every, watchdog/2)
	}
	patience := max(watchdog, stuckAfter)
	select {
	case <-a.tracer.Ready():
	case <-ctx.Done():
		return nil
	}
	var heap heap
	if a.cfg.Confine {
		heap.release() // what loading programs took
		if err := releaseProgram(); err != nil {
			a.cfg.Log.Warn("memory that only the start took is kept", "err", err)
		}
	}
	if a.cfg.Ready != nil {
		a.cfg.Ready(Info{Tier: a.tracer.Tier(), Hooks: a.report.CountAttached(), Metrics: metrics, API: remote, Socket: a.cfg.Socket})
	}
	if err := notify(daemon.SdNotifyReady); err != nil {
		return err
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var told tracer.Stats
	for {
		select {
		case <-ctx.Done():
			return notify(daemon.SdNotifyStopping)
		case <-tick.C:
		}
		if a.cfg.Confine {
			heap.release()
		}
		stats, err := a.tracer.Stats() // waits for the tracer's locks: who cannot get them is not alive
		if err != nil {
			return err
		}
		a.tell(&told, &stats)
		told = stats
		if a.tracer.SinceRound() > patience {
			continue // the reader is stuck: systemd will start another agent
		}
		if err := notify(daemon.SdNotifyWatchdog); err != nil {
			return err
		}
	}
}

// tell logs what went wrong since it last did.
func (a *agent) tell(last, now *tracer.Stats) {
	if lost := now.Lost() + now.Bad - last.Lost() - last.Bad; lost > 0 {
		a.cfg.Log.Warn("events were lost in the kernel; the table is rebuilt", "lost", lost)
	}
	if n := now.ResyncErrors - last.ResyncErrors; n > 0 {
		a.cfg.Log.Error("the table could not be compared with the kernel's, which is tried every second", "times", n, "error", now.ResyncError)
	}
}

// notify tells systemd, where it wants to be told.
func notify(state string) error {
	if _, err := daemon.SdNotify(false, state); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}
