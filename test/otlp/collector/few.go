//go:build !all

package main

import "go.opentelemetry.io/collector/exporter"

func more() []exporter.Factory { return nil }
