package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
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
		Long: "Run as a service. Prometheus scrapes it at /metrics. While it runs, the other\n" +
			"commands query it through its unix socket (with --local, the kernel instead),\n" +
			"and so can curl --unix-socket. The socket is open to its owner and to the group\n" +
			"porthole, if there is one. SIGTERM stops the agent. SIGHUP makes it read the\n" +
			"policy again; if the new one is wrong, the log says so and the old one stays in\n" +
			"force. The web configuration file, with TLS and passwords for /metrics, is read\n" +
			"again for each connection. So is that of the API over TLS, which other machines\n" +
			"can query with a certificate (--agent.url of the other commands).",
		Example: "  porthole agent\n" +
			"  porthole agent --web.listen-address :9655 --web.config.file web.yml\n" +
			"  curl --unix-socket /run/porthole/porthole.sock http://porthole/v1/ports/8080",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), e, &o) },
	}
	flags := cmd.Flags()
	addSocketFlag(cmd, &o.config.Socket)
	flags.StringSliceVar(&o.config.Listen, "web.listen-address", []string{agent.DefaultListen}, "`ADDRESS` of /metrics; empty: only on the unix socket")
	flags.StringVar(&o.config.WebConfig, "web.config.file", "", "`FILE` with TLS and basic auth for /metrics, in the format of Prometheus exporters")
	flags.StringSliceVar(&o.config.API, "api.listen-address", nil, "`ADDRESS` of the API over TLS, such as :9656, for clients with a certificate; empty: only on the unix socket")
	flags.StringVar(&o.config.APIConfig, "api.config.file", "", "`FILE` with TLS for the API, in the format of Prometheus exporters; see docs/agent.md")
	flags.IntVar(&o.config.History, "history", agent.DefaultHistory, fmt.Sprintf("`NUMBER` of closed sockets to remember, at most %d: 100 bytes each", agent.MaxHistory))
	flags.StringVar(&o.config.Store.Dir, "history.dir", "", "`DIRECTORY` to keep history in, over restarts, such as "+store.DefaultDir+"; empty: only in memory")
	flags.StringVar(&o.maxSize, "history.max-size", "256MiB", "`SIZE` that the history may take on disk")
	flags.StringVar(&o.maxAge, "history.max-age", "30d", "`TIME` to keep it")
	flags.StringVar(&o.connections, "history.connections", string(store.AllConnections), "`WHICH` connections to keep besides listeners: all, failures or none")
	flags.StringVar(&o.config.Policy, "policy", "", "`FILE` that says what may listen: count and log what else does; see docs/policy.md")
	addNoArgs(cmd, &o.config.NoArgs)
	flags.StringVar(&o.pods.URL, "kubelet", "", "`URL` of this node's kubelet, for the labels of pods, such as https://HOST:10250")
	flags.StringVar(&o.pods.TokenFile, "kubelet.token-file", "", "`FILE` with the token for the kubelet (default: the service account's, in a pod)")
	flags.StringVar(&o.pods.CAFile, "kubelet.ca-file", "", "`FILE` with the CA certificate of the kubelet (default: the service account's, in a pod)")
	_ = cmd.RegisterFlagCompletionFunc("kubelet", completed(func(*cobra.Command) []string { // fails only for a flag that does not exist
		host, err := os.Hostname() // which is in a certificate that the kubelet makes itself
		if err != nil {
			return nil
		}
		return []string{"https://" + host + ":10250"}
	}))
	flags.StringVar(&o.export.Endpoint, "otlp.endpoint", "", "`URL` to send events to as OTLP logs over HTTP, such as http://HOST:4318")
	flags.StringArrayVar(&o.export.Events, "otlp.events", nil, "`WHICH` events: "+export.Selection+"; if repeated, events that match any")
	flags.StringSliceVar(&o.export.Headers, "otlp.headers", nil, "`NAME=VALUE` headers of the requests; put secrets in OTEL_EXPORTER_OTLP_HEADERS instead")
	flags.StringVar(&o.export.CAFile, "otlp.ca-file", "", "`FILE` with the CA certificates for the endpoint (default: the system's)")
	flags.StringVar(&o.export.CertFile, "otlp.cert-file", "", "`FILE` with a client certificate for the endpoint")
	flags.StringVar(&o.export.KeyFile, "otlp.key-file", "", "`FILE` with the key of the client certificate")
	flags.BoolVar(&o.tail, "tail", false, "also print events, as porthole tail does")
	o.hooks.add(cmd)
	return cmd
}

func serve(ctx context.Context, e *env, o *serveOptions) error {
	if o.config.History < 0 || o.config.History > agent.MaxHistory {
		return usagef("--history: %d: want a number from 0 to %d", o.config.History, agent.MaxHistory)
	}
	if err := cmp.Or(o.setKubelet(), o.setStore(), o.setExport(), o.checkAPI()); err != nil {
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
		for _, url := range info.API {
			fmt.Fprintf(e.stderr, "api: %s\n", url)
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

// checkAPI refuses an API that not only clients with a certificate could use.
func (o *serveOptions) checkAPI() error {
	file, listens := o.config.APIConfig, len(o.config.API) > 0
	switch {
	case !listens && file == "":
		return nil
	case !listens:
		return usagef("--api.config.file: %s: want --api.listen-address too", file)
	case file == "":
		return usagef("--api.listen-address: %s: want --api.config.file too: without certificates the API is on the unix socket alone", strings.Join(o.config.API, ","))
	}
	err := agent.CheckAPIConfig(file)
	var unread *fs.PathError
	if err != nil && !errors.As(err, &unread) {
		return usageError{err}
	}
	return err
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
