// Package agent is porthole as a service: one Tracer, asked by many through a unix
// socket, and by Prometheus.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/export"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/metrics"
	"github.com/porthole-dev/porthole/internal/policy"
	"github.com/porthole-dev/porthole/internal/store"
	"github.com/porthole-dev/porthole/tracer"
)

// DefaultSocket is where the agent answers, DefaultListen where Prometheus asks.
const (
	DefaultSocket = "/run/porthole/porthole.sock"
	DefaultListen = "127.0.0.1:9655"
)

const (
	// DefaultHistory is how many tenancies that ended the agent keeps: some 7 MB.
	DefaultHistory = 1 << 16
	// MaxHistory is how many it may be told to keep: some 1 GB.
	MaxHistory     = 10_000_000
	reconcileEvery = 30 * time.Second
	// endWithin is how long clients have to take the end of their answers.
	endWithin = 2 * time.Second
)

// Config says how to run an agent.
type Config struct {
	Socket    string   // path
	Listen    []string // TCP addresses of /metrics; none: on the socket alone
	WebConfig string   // path of a web configuration file, for Listen; "": none
	API       []string // TCP addresses of the API over TLS; none: on the socket alone
	APIConfig string   // path of its configuration, as CheckAPIConfig wants it
	History   int      // how many tenancies that ended to keep
	// Store says where the history is kept on disk, with Dir "" nowhere; Connections which of them.
	Store       store.Config
	Connections store.Which
	// Policy is the path of a list of what may listen, read again when Again has something to receive; "": none.
	Policy         string
	Again          <-chan os.Signal
	Tier           tracer.Tier
	NoSyscallHooks bool
	NoArgs         bool              // no command lines are read or told
	Kubelet        *identity.Kubelet // to be asked for pods; nil: none is
	Export         *export.Config    // where events are sent to; nil: nowhere
	Confine        bool              // give up the privileges of the process that are of no use once ready, and set its memory limit
	Version        string
	Log            *slog.Logger // warnings and errors; of level info others say that they listen
	Ready          func(Info)   // called once, when the agent knows every socket
}

// Info tells what an agent that is ready does.
type Info struct {
	Tier    tracer.Tier
	Hooks   int      // attached
	Metrics []string // URLs
	API     []string // URLs
	Socket  string
}

type agent struct {
	cfg    Config
	tracer *tracer.Tracer
	report *doctor.Report
	names  *identity.Names
	feed   *store.Feed      // nil: no history is kept on disk
	policy *policy.Watch    // nil: there is none
	export *export.Exporter // nil: nothing is exported
	since  time.Time
}

// Run runs an agent until ctx ends, or something fails. Whatever it began has
// ended when it returns: nothing is attached, the socket is gone. What can be refused
// without attaching anything is.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := tracer.CheckTrace(cfg.Tier); err != nil {
		return err
	}
	if cfg.Confine {
		limitMemory(cfg.Log)
		if err := checkFiles(); err != nil {
			return err
		}
	}
	socket, err := listenSocket(cfg.Socket, cfg.Log) // first: of two agents that tells more than a port in use
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, socket.close()) }()
	front, err := openWeb(cfg)
	if err != nil {
		return err
	}
	defer front.close()
	remote, err := openAPI(cfg)
	if err != nil {
		return err
	}
	defer remote.close()

	a := &agent{cfg: cfg, since: time.Now()}
	a.names = identity.Load(func() ([]tracer.NetNS, error) { return a.tracer.NetNamespaces() })
	defer a.names.Cgroups.Close()
	a.names.Processes = identity.NewProcesses(!cfg.NoArgs)
	a.names.Cgroups.Kubelet = cfg.Kubelet
	if a.report, err = doctor.Machine(); err != nil {
		return err
	}
	var kept *store.Store
	if cfg.Store.Dir != "" { // before events can come: it may take a second
		own := cfg.Store.Describing(a.names)
		own.Log = cfg.Log
		if kept, err = store.Open(own); err != nil {
			return err
		}
		cfg.History = 0 // what is on disk has it
	}
	a.tracer, err = tracer.Open(tracer.Config{
		Tier: cfg.Tier, NoSyscallHooks: cfg.NoSyscallHooks, History: cfg.History, Reconcile: reconcileEvery,
	})
	if err != nil {
		if kept != nil {
			err = errors.Join(err, kept.Close(nil))
		}
		return err
	}
	defer func() { err = errors.Join(err, a.tracer.Close()) }()
	if kept != nil {
		a.feed = store.NewFeed(kept, a.tracer, cfg.Connections)
		defer func() { err = errors.Join(err, a.feed.Close()) }()
	}
	if cfg.Policy != "" {
		if a.policy, err = policy.NewWatch(cfg.Policy, a.tracer, a.names, cfg.Log); err != nil {
			return err
		}
	}
	a.names.Follow(a.tracer)
	if cfg.Export != nil {
		own := *cfg.Export
		own.Dir, own.Log = cfg.Store.Dir, cfg.Log
		if a.export, err = export.New(&own, a.tracer, a.names, a.feed); err != nil {
			return fmt.Errorf("export events: %w", err)
		}
	}
	if cfg.Confine {
		if err := confine(); err != nil {
			return err
		}
	}
	a.report.Attached(a.tracer)
	for _, what := range a.report.PartialView {
		cfg.Log.Warn("not everything is seen", "what", what)
	}
	return a.serve(ctx, socket, front, remote)
}

// serve does everything at once until ctx ends or one thing fails.
func (a *agent) serve(ctx context.Context, socket *socket, front *webFront, remote *apiFront) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var all sync.WaitGroup
	start := func(what string, run func() error) {
		all.Go(func() {
			if err := run(); err != nil && !errors.Is(err, http.ErrServerClosed) {
				fail(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	reg, err := a.metrics()
	if err != nil {
		return err
	}
	answers := api.New(api.Config{
		Tracer: a.tracer, History: a.feed, Names: a.names, Report: a.report, Metrics: reg, Version: a.cfg.Version, Since: a.since, Log: a.cfg.Log,
	})
	whole := answers.APIHandler()
	inside, elsewhere := api.NewHTTP(whole, a.cfg.Log), remote.server(whole)
	outside := front.servers(answers.WebHandler(), a.cfg.Log)
	start("name cgroups", func() error { a.names.Cgroups.Run(ctx); return nil })
	if kubelet := a.cfg.Kubelet; kubelet != nil {
		start("ask the kubelet", func() error {
			kubelet.Run(ctx, func(err error) { a.cfg.Log.Warn("pods have no labels, or old ones", "error", err) })
			return nil
		})
	}
	start("trace", func() error { return a.tracer.Run(ctx, nil) })
	if a.feed != nil {
		start("keep the history", func() error { a.feed.Run(ctx); return nil })
	}
	if a.policy != nil {
		start("compare with the policy", func() error { a.policy.Run(ctx, a.cfg.Again); return nil })
	}
	if a.export != nil {
		start("export events", func() error { a.export.Run(ctx); return nil })
	}
	start("serve "+a.cfg.Socket, func() error { return inside.Serve(api.Limit(socket)) })
	for i, server := range outside {
		start("serve metrics", func() error { return front.serve(i, server, a.cfg.Log) })
	}
	for _, l := range remote.listeners {
		start("serve the API", func() error { return elsewhere.ServeTLS(l, "", "") })
	}
	start("watch", func() error { return a.watch(ctx, front.urls(), remote.urls()) })
	<-ctx.Done()
	// Every stream of events ends with the tracer.
	end(append(outside, inside, elsewhere))
	all.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// end ends servers when their answers have been read, or nobody reads them.
func end(servers []*http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), endWithin)
	defer cancel()
	var all sync.WaitGroup
	for _, s := range servers {
		all.Go(func() {
			if s.Shutdown(ctx) != nil {
				s.Close()
			}
		})
	}
	all.Wait()
}

// metrics collects those of porthole, of the process and of Go.
func (a *agent) metrics() (*prometheus.Registry, error) {
	reg := prometheus.NewRegistry()
	of := metrics.Sources{Tracer: a.tracer, Export: a.export, Names: a.names, Version: a.cfg.Version, Log: a.cfg.Log}
	if a.feed != nil {
		of.History = a.feed.Store
	}
	if a.policy != nil {
		of.Violations = a.policy.Present
	}
	for _, c := range []prometheus.Collector{
		metrics.New(of),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector(),
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return reg, nil
}
