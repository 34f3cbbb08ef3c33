//go:build all

package main

import (
	"github.com/open-telemetry/opentelemetry-collector-contrib/exporter/clickhouseexporter"
	"github.com/open-telemetry/opentelemetry-collector-contrib/exporter/kafkaexporter"
	"go.opentelemetry.io/collector/exporter"
)

// more are the exporters of deploy/collector that no test runs: they are built to check the configurations.
func more() []exporter.Factory {
	return []exporter.Factory{clickhouseexporter.NewFactory(), kafkaexporter.NewFactory()}
}
