package agent

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"

	"github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v2"

	"github.com/porthole-dev/porthole/internal/api"
)

// webFront is what Prometheus asks: TCP, with TLS and passwords by the
// configuration file that every exporter has.
type webFront struct {
	listeners []net.Listener
	addrs     []string // as given
	config    string
	scheme    string
}

// openWeb listens, and checks the configuration.
func openWeb(cfg Config) (*webFront, error) {
	w := &webFront{config: cfg.WebConfig, scheme: "http"}
	if w.config != "" {
		if err := web.Validate(w.config); err != nil {
			return nil, fmt.Errorf("read web configuration %s: %w", w.config, err)
		}
		text, err := os.ReadFile(w.config)
		if err != nil {
			return nil, fmt.Errorf("read web configuration: %w", err)
		}
		var c web.Config
		if err := yaml.Unmarshal(text, &c); err != nil {
			return nil, fmt.Errorf("read web configuration %s: %w", w.config, err)
		}
		if c.TLSConfig.IsEnabled() {
			w.scheme = "https"
		}
	}
	for _, addr := range cfg.Listen {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			w.close()
			return nil, fmt.Errorf("listen for metrics: %w", err)
		}
		w.listeners = append(w.listeners, api.Limit(l))
		w.addrs = append(w.addrs, addr)
	}
	return w, nil
}

// urls are those of the metrics.
func (w *webFront) urls() []string {
	var out []string
	for _, l := range w.listeners {
		out = append(out, w.scheme+"://"+l.Addr().String()+"/metrics")
	}
	return out
}

// servers makes one for each listener: serving changes them.
func (w *webFront) servers(h http.Handler, log *slog.Logger) []*http.Server {
	out := make([]*http.Server, len(w.listeners))
	if w.scheme != "https" {
		h = api.Guard(w.addrs, h)
	}
	for i := range out {
		out[i] = api.NewHTTP(h, log)
	}
	return out
}

func (w *webFront) serve(i int, server *http.Server, log *slog.Logger) error {
	return web.Serve(w.listeners[i], server, &web.FlagConfig{WebConfigFile: &w.config}, log)
}

// close frees the listeners; their servers have closed them if there were any.
func (w *webFront) close() {
	for _, l := range w.listeners {
		l.Close()
	}
}
