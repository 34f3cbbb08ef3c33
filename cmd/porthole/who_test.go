package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

func TestParseQuestion(t *testing.T) {
	both := []tracer.Proto{tracer.TCP, tracer.UDP}
	for in, want := range map[string]render.Question{
		"1":        {Port: 1, Protos: both},
		"65535":    {Port: 65535, Protos: both},
		"53/udp":   {Port: 53, Protos: []tracer.Proto{tracer.UDP}},
		"53/TCP":   {Port: 53, Protos: []tracer.Proto{tracer.TCP}},
		"0008080":  {Port: 8080, Protos: both},
		"8080/Tcp": {Port: 8080, Protos: []tracer.Proto{tracer.TCP}},
	} {
		got, err := parseQuestion(in)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%q: %v (-want +got):\n%s", in, err, d)
		}
	}
}
