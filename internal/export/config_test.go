package export

import (
	"strings"
	"testing"
	"time"
)

func TestConfig(t *testing.T) {
	type vars = map[string]string
	for _, c := range []struct {
		name    string
		set     Settings
		env     vars
		url     string // "": nothing is exported
		wrong   string // part of the error
		headers string // "NAME: VALUE" there have to be
	}{
		{name: "nothing"},
		{name: "base", set: Settings{Endpoint: "http://c:4318"}, url: "http://c:4318/v1/logs"},
		{name: "whole", set: Settings{Endpoint: "https://c/insert/opentelemetry/v1/logs"}, url: "https://c/insert/opentelemetry/v1/logs"},
		{name: "prefix", set: Settings{Endpoint: "https://c/otlp/"}, url: "https://c/otlp/v1/logs"},
		{name: "variable", env: vars{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, url: "http://c:4318/v1/logs"},
		{name: "of logs as it is", env: vars{"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://c:1/x", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://no"}, url: "http://c:1/x"},
		{name: "flag before variable", set: Settings{Endpoint: "http://a"}, env: vars{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b"}, url: "http://a/v1/logs"},
		{name: "password", set: Settings{Endpoint: "https://u:secret@c"}, url: "https://u:xxxxx@c/v1/logs"},
		{name: "no URL", set: Settings{Endpoint: "collector:4318"}, wrong: `--otlp.endpoint: "collector:4318": want a URL, as http://HOST:4318`},
		{name: "no host", set: Settings{Endpoint: "http://"}, wrong: `--otlp.endpoint: "http://": want a URL`},
		{name: "scheme", set: Settings{Endpoint: "grpc://c:4317"}, wrong: "want a URL, as http://"},
		{name: "port", set: Settings{Endpoint: "http://c:99999"}, wrong: `port "99999": want a number from 1 to 65535`},
		{name: "no URL in a variable", env: vars{"OTEL_EXPORTER_OTLP_ENDPOINT": "c"}, wrong: `OTEL_EXPORTER_OTLP_ENDPOINT: "c": want a URL`},
		{name: "protocol", env: vars{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, wrong: `OTEL_EXPORTER_OTLP_PROTOCOL: "grpc": want http/protobuf`},
		{name: "headers", set: Settings{Endpoint: "http://c", Headers: []string{"x-scope-orgid=shop"}}, env: vars{"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20x%3D, a=b"}, url: "http://c/v1/logs", headers: "Authorization: Bearer x="},
		{name: "header flag", set: Settings{Endpoint: "http://c", Headers: []string{"X-Scope-OrgID = shop"}}, url: "http://c/v1/logs", headers: "X-Scope-Orgid: shop"},
		{name: "no header", set: Settings{Endpoint: "http://c", Headers: []string{"bearer"}}, wrong: "--otlp.headers: want NAME=VALUE"},
		{name: "no timeout", set: Settings{Endpoint: "http://c"}, env: vars{"OTEL_EXPORTER_OTLP_TIMEOUT": "10s"}, wrong: `OTEL_EXPORTER_OTLP_TIMEOUT: "10s": want a number of milliseconds`},
		{name: "no compression", set: Settings{Endpoint: "http://c"}, env: vars{"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"}, wrong: `OTEL_EXPORTER_OTLP_COMPRESSION: "zstd": want gzip or none`},
		{name: "flags alone", set: Settings{Events: []string{"all"}}, wrong: "go with --otlp.endpoint"},
		{name: "CA without TLS", set: Settings{Endpoint: "http://c", CAFile: "/none"}, wrong: "go with an endpoint of https"},
		{name: "no CA", set: Settings{Endpoint: "https://c", CAFile: "/none"}, wrong: "--otlp.ca-file: open /none"},
		{name: "no PEM", set: Settings{Endpoint: "https://c", CAFile: "config_test.go"}, wrong: "want certificates as PEM"},
		{name: "no key", set: Settings{Endpoint: "https://c", CertFile: "x.pem"}, wrong: "go together"},
		{name: "CA of a variable", set: Settings{Endpoint: "https://c"}, env: vars{"OTEL_EXPORTER_OTLP_CERTIFICATE": "/none"}, wrong: "OTEL_EXPORTER_OTLP_CERTIFICATE: open /none"},
		{name: "resource", set: Settings{Endpoint: "http://c"}, env: vars{"OTEL_RESOURCE_ATTRIBUTES": "a"}, wrong: `OTEL_RESOURCE_ATTRIBUTES: "a": want NAME=VALUE`},
		{name: "no event", set: Settings{Endpoint: "http://c", Events: []string{"event=bid"}}, wrong: `did you mean bind`},
		{name: "no filter", set: Settings{Endpoint: "http://c", Events: []string{"everything"}}, wrong: `--otlp.events: "everything": want default, all, or filters`},
		{name: "no parameter", set: Settings{Endpoint: "http://c", Events: []string{"prot=5"}}, wrong: `parameter "prot": want one of`},
		{name: "handshakes", set: Settings{Endpoint: "http://c", Events: []string{"event=established"}}, wrong: "handshakes are not exported"},
		{name: "events", set: Settings{Endpoint: "http://c", Events: []string{"default", "event=connect&rport=5432,6379"}}, url: "http://c/v1/logs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := NewConfig(c.set, func(name string) string { return c.env[name] }, "v1")
			switch {
			case c.wrong != "":
				if err == nil || !strings.Contains(err.Error(), c.wrong) {
					t.Errorf("error %v, want one with %q", err, c.wrong)
				}
				return
			case err != nil:
				t.Fatal(err)
			case c.url == "":
				if cfg != nil {
					t.Errorf("exports to %s", cfg.Endpoint())
				}
				return
			}
			if cfg.Endpoint() != c.url {
				t.Errorf("endpoint %s, want %s", cfg.Endpoint(), c.url)
			}
			if name, value, ok := strings.Cut(c.headers, ": "); ok && cfg.headers.Get(name) != value {
				t.Errorf("header %s is %q, want %q", name, cfg.headers.Get(name), value)
			}
		})
	}
}

// A secret that was put in the wrong place is not repeated.
func TestConfigKeepsSecrets(t *testing.T) {
	_, err := NewConfig(Settings{Endpoint: "http://c", Headers: []string{"a b=secret"}}, func(string) string { return "" }, "v1")
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("error: %v", err)
	}
}

func TestResource(t *testing.T) {
	env := map[string]string{"OTEL_SERVICE_NAME": "ports", "OTEL_RESOURCE_ATTRIBUTES": "service.name=no,host.name=node%201,k8s.cluster.name=prod", "K8S_NODE_NAME": "node-1"}
	got, err := resourceOf(func(name string) string { return env[name] }, "v1.2")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, a := range got {
		if _, twice := all[a.name]; twice {
			t.Errorf("%s is there twice", a.name)
		}
		all[a.name] = a.value
	}
	for name, want := range map[string]string{"service.name": "ports", "service.version": "v1.2", "host.name": "node 1", "k8s.cluster.name": "prod", "k8s.node.name": "node-1"} {
		if all[name] != want {
			t.Errorf("%s is %q, want %q", name, all[name], want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 28, 4, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "Sat, 28 Nov 2026 04:00:09 GMT": 9 * time.Second, "Sat, 28 Nov 2026 03:00:00 GMT": 0, "soon": 0, "-1": 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}
