package policy

import (
	"os"
	"strings"
	"testing"

	"github.com/porthole-dev/porthole/internal/identity"
)

func parse(t *testing.T, text string) *Policy {
	t.Helper()
	p, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// What is wrong with a file is told by line and field, or by rule and value.
func TestParseWrong(t *testing.T) {
	for text, want := range map[string]string{
		"allow:\n- port: 80\n  unti: x\n":    "line 3: field unti: there is no such field",
		"alow: []\n":                         "line 1: field alow: there is no such field",
		"allow:\n- port: 80\n  port: 81\n":   "line 3: field port: it is there twice",
		"allow: 80\n":                        "line 1: ",
		"allow:\n- port: [80]\n":             "line 2: ",
		"allow:\n- {port: 80-70, name: web}": `rule web: port: "80-70"`,
		"allow:\n- port: 65536\n":            `rule 1: port: "65536"`,
		"allow:\n- port: 0\n":                `rule 1: port: "0"`,
		"allow:\n- proto: sctp\n":            `rule 1: proto: "sctp": want tcp or udp`,
		"allow:\n- exposure: world\n":        `rule 1: exposure: "world"`,
		"allow:\n- unit: '['\n":              `rule 1: unit: "["`,
		"allow:\n- uid: nobody-here\n":       `rule 1: uid: "nobody-here"`,
		"allow:\n- name: none\n":             "rule none: want a name of its own",
		"allow:\n- name: a\n- name: a\n":     "rule a: want a name of its own",
		strings.Repeat("#", maxFile+1):       "more than",
	} {
		if _, err := Parse(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
}

func TestCheck(t *testing.T) {
	web := func(change func(*Listener)) *Listener {
		l := &Listener{
			Proto: "tcp", Port: 8080, Exposed: true, Programs: []string{"sh", "nginx"}, UID: 33,
			Where: identity.Cgroup{Unit: "web.service", Container: &identity.Container{ID: "0123456789abcdef", Name: "web"}, Pod: &identity.Pod{Namespace: "shop", Name: "web-0"}},
		}
		change(l)
		return l
	}
	same := func(*Listener) {}
	for _, c := range []struct {
		rule string
		l    *Listener
		want string // the rule; "": allowed
	}{
		{"{}", web(same), ""},
		{"{port: 8080}", web(same), ""},
		{"{port: 8000-8080, proto: tcp, exposure: exposed, unit: web, program: 'ngin?', uid: 33, container: w*, pod: shop/web-*}", web(same), ""},
		{"{port: 8080, container: 0123456789ab}", web(same), ""},
		{"{port: 8080, uid: root}", web(func(l *Listener) { l.UID = 0 }), ""},
		{"{port: 8081}", web(same), "none"},
		{"{port: 8080, proto: udp}", web(same), "none"},
		{"{port: 8080, exposure: local}", web(same), "1"},
		{"{name: w, port: 8080, unit: db}", web(same), "w"},
		{"{port: 8080, program: caddy}", web(same), "1"},
		{"{port: 8080, pod: shop/api-*}", web(same), "1"},
		{"{port: 8080, container: db}", web(func(l *Listener) { l.Where = identity.Cgroup{} }), "1"},
		{"{port: 8080, unit: '*'}", web(func(l *Listener) { l.Where = identity.Cgroup{} }), "1"},
		{"{port: 8080, uid: 0}", web(same), "1"},
	} {
		ok, rule, why := parse(t, "allow:\n- "+c.rule+"\n").Check(c.l)
		if ok != (c.want == "") || rule != c.want || (why == "") != ok {
			t.Errorf("%s: %t, %q, %q, want rule %q", c.rule, ok, rule, why, c.want)
		}
	}
}

// Whatever names there are, what is written allows them, and no others.
func TestWrite(t *testing.T) {
	of := []Listener{
		{Proto: "udp", Port: 53, Programs: []string{"a*[?]\\ \"x\": #"}, UID: 5, Where: identity.Cgroup{Unit: `dev-\x2da@1.service`}},
		{Proto: "tcp", Port: 80, Exposed: true, Programs: []string{"na\u00efve"}, Where: identity.Cgroup{Pod: &identity.Pod{Namespace: "shop", Name: "web-0"}}},
		{Proto: "tcp", Port: 81, Programs: []string{"\xff\x1b"}, Where: identity.Cgroup{Container: &identity.Container{ID: "0123456789abcdef"}}},
		{Proto: "tcp", Port: 82, Where: identity.Cgroup{Unit: "session-3.scope"}},
	}
	var text strings.Builder
	if err := Write(&text, of); err != nil {
		t.Fatal(err)
	}
	p := parse(t, text.String())
	for i := range of {
		if ok, rule, why := p.Check(&of[i]); !ok {
			t.Errorf("%+v: rule %s, %s in\n%s", of[i], rule, why, text.String())
		}
	}
	of[0].Programs = []string{"abc?\\ \"x\": #"}
	if ok, _, _ := p.Check(&of[0]); ok {
		t.Error("a name with a * allows others")
	}
	text.Reset()
	if err := Write(&text, nil); err != nil {
		t.Fatal(err)
	}
	parse(t, text.String())
}

// The example of the documentation is a policy.
func TestDocumentedExample(t *testing.T) {
	doc, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(doc), "```yaml\n")
	example, _, found := strings.Cut(rest, "```")
	if !found || len(parse(t, example).rules) < 3 {
		t.Errorf("no example: %q", example)
	}
}
