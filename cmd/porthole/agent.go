package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/agent"
	"github.com/porthole-dev/porthole/internal/export"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/internal/store"
)

type serveOptions struct {
	hooks  hookOptions
	config agent.Config
	pods   identity.KubeletConfig
	export export.Settings
	tail   bool

	maxSize, maxAge, connections string // of the history on disk
}

func newAgent(e *env) *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run as a service: metrics, history, and an API on a unix socket",
		Long: "Run as a service. Prometheus scrapes it at /metrics; the other commands query it\n" +
			"through its unix socket while it runs (--local: the kernel instead), and so can\n" +
			"curl --unix-socket. The socket is for its owner and for group porthole, where\n" +
			"there is one. SIGTERM ends the agent. SIGHUP has it read the policy again; if\n" +
			"that is wrong, the log says so and the one before holds. The web configuration\n" +
			"file, with TLS and passwords of /metrics, is read again for each connection.",
		Example: "  porthole agent\n" +
			"  porthole agent --web.listen-address :9655 --web.config.file web.yml\n" +
			"  curl --unix-socket /run/porthole/porthole.sock http://porthole/v1/ports/8080",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), e, &o) },
	}
	flags := cmd.Flags()
	addSocketFlag(cmd, &o.config.Socket)
	flags.StringSliceVar(&o.config.Listen, "web.listen-address", []string{agent.DefaultListen}, "address of /metrics; empty: on the unix socket alone")
	flags.StringVar(&o.config.WebConfig, "web.config.file", "", "file with TLS and basic auth of /metrics, as exporters of Prometheus have it")
	flags.IntVar(&o.config.History, "history", agent.DefaultHistory, fmt.Sprintf("how many closed sockets to remember, %d at most: 100 bytes each", agent.MaxHistory))
	flags.StringVar(&o.config.Store.Dir, "history.dir", "", "directory to keep history in, over restarts, as "+store.DefaultDir+"; empty: in memory alone")
	flags.StringVar(&o.maxSize, "history.max-size", "256MiB", "what that history may take on disk")
	flags.StringVar(&o.maxAge, "history.max-age", "30d", "how long it is kept")
	flags.StringVar(&o.connections, "history.connections", string(store.AllConnections), "which connections are kept besides listeners: all, failures or none")
	flags.StringVar(&o.config.Policy, "policy", "", "list of what may listen: count and log what else does; docs/policy.md describes the file")
	addNoArgs(cmd, &o.config.NoArgs)
	flags.StringVar(&o.pods.URL, "kubelet", "", "URL of this node's kubelet, to ask for the labels of pods, as https://HOST:10250")
	flags.StringVar(&o.pods.TokenFile, "kubelet.token-file", "", "file with the token for the kubelet (default: the service account's, in a pod)")
	flags.StringVar(&o.pods.CAFile, "kubelet.ca-file", "", "file with the certificate that signed the kubelet's (default: the service account's, in a pod)")
	_ = cmd.RegisterFlagCompletionFunc("kubelet", completed(func(*cobra.Command) []string { // fails only for a flag that does not exist
		host, err := os.Hostname() // which is in a certificate that the kubelet makes itself
		if err != nil {
			return nil
		}
		return []string{"https://" + host + ":10250"}
	}))
	flags.StringVar(&o.export.Endpoint, "otlp.endpoint", "", "URL to send events to as OTLP logs over HTTP, as http://HOST:4318")
	flags.StringArrayVar(&o.export.Events, "otlp.events", nil, "which events: "+export.Selection+"; several: what any of them has")
	flags.StringSliceVar(&o.export.Headers, "otlp.headers", nil, "headers of the requests, as NAME=VALUE; secrets rather in OTEL_EXPORTER_OTLP_HEADERS")
	flags.StringVar(&o.export.CAFile, "otlp.ca-file", "", "file with the certificates that the endpoint's is to be signed by (default: the system's)")
	flags.StringVar(&o.export.CertFile, "otlp.cert-file", "", "file with a certificate to show to the endpoint")
	flags.StringVar(&o.export.KeyFile, "otlp.key-file", "", "file with the key of that certificate")
	flags.BoolVar(&o.tail, "tail", false, "also print events, as porthole tail does")
	o.hooks.add(cmd)
	return cmd
}

func serve(ctx context.Context, e *env, o *serveOptions) error {
	if o.config.History < 0 || o.config.History > agent.MaxHistory {
		return usagef("--history: %d: want a number from 0 to %d", o.config.History, agent.MaxHistory)
	}
	if err := cmp.Or(o.setKubelet(), o.setStore(), o.setExport()); err != nil {
		return err
	}
	if o.config.Policy == "" {
		signal.Ignore(syscall.SIGHUP)
	} else {
		if _, err := readPolicy(o.config.Policy); err != nil { // before anything is attached
			return err
		}
		again := make(chan os.Signal, 1)
		signal.Notify(again, syscall.SIGHUP)
		defer signal.Stop(again)
		o.config.Again = again
	}
	e.endsItself()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	log := agent.NewLogWriter(e.stderr) // a log that cannot be written must not stop the agent
	defer log.Close()
	own := *e
	own.stderr, e = log, &own
	cfg := o.config
	cfg.Confine = e.alone
	cfg.Tier, cfg.NoSyscallHooks, cfg.Version = o.hooks.tier, o.hooks.noSyscallHooks, version
	cfg.Log = slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	var tail sync.WaitGroup
	var tailErr error
	cfg.Ready = func(info agent.Info) {
		tellAttached(e, info.Tier, info.Hooks)
		for _, url := range info.Metrics {
			fmt.Fprintf(e.stderr, "metrics: %s\n", url)
		}
		fmt.Fprintf(e.stderr, "socket: %s\n", info.Socket)
		if cfg.Export != nil {
			fmt.Fprintf(e.stderr, "events: to %s\n", cfg.Export.Endpoint())
		}
		if o.tail {
			tail.Go(func() {
				tailErr = tailOf(ctx, e, info.Socket)
				stop()
			})
		}
	}
	err := agent.Run(ctx, cfg)
	tail.Wait()
	return errors.Join(whoHasIt(ctx, err), tailErr)
}

// setStore reads the flags of the history on disk.
func (o *serveOptions) setStore() (err error) {
	c := &o.config.Store
	if c.MaxSize, err = query.ParseSize(o.maxSize); err != nil {
		return usagef("--history.max-size: %v", err)
	}
	if c.MaxSize < store.LeastSize {
		return usagef("--history.max-size: %s: want at least %d MiB", o.maxSize, store.LeastSize>>20)
	}
	if c.MaxAge, err = query.ParseAge(o.maxAge); err != nil {
		return usagef("--history.max-age: %v", err)
	}
	o.config.Connections = store.Which(o.connections)
	if !slices.Contains(store.Whiches(), o.config.Connections) {
		return usagef("--history.connections: %q: want one of all, failures, none%s", o.connections, query.Meant(o.connections, []string{"all", "failures", "none"}))
	}
	return nil
}

// setExport reads the flags of the export, and the variables of OpenTelemetry.
func (o *serveOptions) setExport() (err error) {
	if o.config.Export, err = export.NewConfig(o.export, os.Getenv, version); err != nil {
		return usagef("%v", err)
	}
	return nil
}

// setKubelet reads the flags of the kubelet.
func (o *serveOptions) setKubelet() error {
	if o.pods.URL == "" {
		if o.pods != (identity.KubeletConfig{}) {
			return usagef("--kubelet.token-file and --kubelet.ca-file go with --kubelet")
		}
		return nil
	}
	var err error
	if o.config.Kubelet, err = identity.NewKubelet(o.pods); err != nil {
		return usagef("--kubelet: %v", err)
	}
	return nil
}

// tailOf follows the events of an agent just started.
func tailOf(ctx context.Context, e *env, socket string) error {
	remote, err := source.Dial(socket)
	if err != nil {
		return err
	}
	q, err := query.ParseEvents(nil)
	if err != nil {
		return err
	}
	return follow(ctx, e, &tailOptions{told: true, noProbes: true}, func(ctx context.Context) (source.Events, error) { return remote.Events(ctx, q) })
}
