package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// newMetrics collects what porthole tells Prometheus.
func newMetrics(_ *tracer.Tracer, _ *render.Names, version string) prometheus.Collector {
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "porthole_build_info", Help: "What porthole runs.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	return info
}
