package query

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/porthole-dev/porthole/tracer"
)

func TestParsePortWord(t *testing.T) {
	both := []tracer.Proto{tracer.TCP, tracer.UDP}
	for in, want := range map[string]Port{
		"1":        {Number: 1, Protos: both, Limit: Unlimited},
		"65535":    {Number: 65535, Protos: both, Limit: Unlimited},
		"53/udp":   {Number: 53, Protos: []tracer.Proto{tracer.UDP}, Limit: Unlimited},
		"53/TCP":   {Number: 53, Protos: []tracer.Proto{tracer.TCP}, Limit: Unlimited},
		"0008080":  {Number: 8080, Protos: both, Limit: Unlimited},
		"http":     {Number: 80, Protos: both, Limit: Unlimited},
		":8080":    {Number: 8080, Protos: both, Limit: Unlimited},
		"tcp/8080": {Number: 8080, Protos: []tracer.Proto{tracer.TCP}, Limit: Unlimited},
		"[::1]:1":  {Number: 1, Protos: both, Limit: Unlimited},
		"8080/Tcp": {Number: 8080, Protos: []tracer.Proto{tracer.TCP}, Limit: Unlimited},
	} {
		got, err := ParsePortWord(in)
		if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Port{})); err != nil || d != "" {
			t.Errorf("%q: %v (-want +got):\n%s", in, err, d)
		}
	}
}
