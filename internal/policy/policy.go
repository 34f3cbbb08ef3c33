// Package policy is a list of what may listen on a machine: read from a file, and compared with listeners.
package policy

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v2"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
)

// None is the rule of a listener whose port no rule has; Other is the label of rules that have no series of
// their own. No rule is called so.
const (
	None  = "none"
	Other = "other"
)

// Exposures of a listener: whether others can reach it, as ls --exposed has it.
const (
	Exposed = "exposed"
	Local   = "local"
)

const (
	maxFile  = 1 << 20
	maxRules = 1000
)

// Policy is a list of rules. A listener is allowed if one of them has it.
type Policy struct{ rules []rule }

// rule is one of them as it is written; what is empty is of any.
type rule struct {
	Name      string `yaml:"name"`
	Proto     string `yaml:"proto"`
	Port      string `yaml:"port"`
	Exposure  string `yaml:"exposure"`
	Unit      string `yaml:"unit"`
	Container string `yaml:"container"`
	Pod       string `yaml:"pod"`
	Program   string `yaml:"program"`
	UID       string `yaml:"uid"`

	low, high uint16
	uid       uint32
}

// NamedUser is the first user that a rule has by his name on this machine, not by his number; "": none does.
func (p *Policy) NamedUser() string {
	for i := range p.rules {
		if _, err := strconv.ParseUint(p.rules[i].UID, 10, 32); p.rules[i].UID != "" && err != nil {
			return p.rules[i].UID
		}
	}
	return ""
}

// Listener is what rules are compared with. Container and Pod are nil where it runs in none.
type Listener struct {
	Proto    string
	Port     uint16
	Exposed  bool
	Where    identity.Cgroup
	Programs []string // the names of those who hold it
	UID      uint32
}

// Of is the listener that a socket is. Its place is that of its socket unit, or else of its first holder.
func Of(s *render.Socket, exposed bool) Listener {
	l := Listener{
		Proto: s.Proto, Port: s.LocalPort, Exposed: exposed,
		Where: identity.Cgroup{Unit: cmp.Or(s.SocketUnit, s.Unit), Container: s.Container, Pod: s.Pod},
	}
	if s.UID != nil {
		l.UID = *s.UID
	}
	for i := range s.Holders {
		l.Programs = append(l.Programs, s.Holders[i].Comm)
	}
	return l
}

// Exposure is what a rule calls it.
func (l *Listener) Exposure() string {
	if l.Exposed {
		return Exposed
	}
	return Local
}

// Parse reads a policy. An error tells the line and the field, or the rule.
func Parse(in io.Reader) (*Policy, error) {
	text, err := io.ReadAll(io.LimitReader(in, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("more than %d bytes", maxFile)
	}
	var file struct {
		Allow []rule `yaml:"allow"`
	}
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		return nil, plain(err)
	}
	if len(file.Allow) > maxRules {
		return nil, fmt.Errorf("%d rules: want at most %d", len(file.Allow), maxRules)
	}
	names := map[string]bool{None: true, Other: true}
	for i := range file.Allow {
		r := &file.Allow[i]
		if r.Name == "" {
			r.Name = strconv.Itoa(i + 1)
		}
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("rule %s: %w", identity.Safe(r.Name), err)
		}
		if names[r.Name] {
			return nil, fmt.Errorf("rule %s: want a name of its own", identity.Safe(r.Name))
		}
		names[r.Name] = true
	}
	return &Policy{file.Allow}, nil
}

// plain words an error of the YAML library as a person reads it.
func plain(err error) error {
	var typed *yaml.TypeError
	if !errors.As(err, &typed) {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	lines := slices.Clone(typed.Errors)
	const told = 3 // a file of something else has one for each of its lines
	if more := len(lines) - told; more > 0 {
		lines = append(lines[:told], fmt.Sprintf("and %d more", more))
	}
	for i, line := range lines {
		for _, in := range []string{" in type policy.rule", " in type struct { Allow []policy.rule \"yaml:\\\"allow\\\"\" }"} {
			line = strings.Replace(line, " not found"+in, ": there is no such field", 1)
			line = strings.Replace(line, " already set"+in, ": it is there twice", 1)
		}
		lines[i] = line
	}
	return errors.New(strings.Join(lines, "; "))
}

// check reads the values of a rule.
func (r *rule) check() (err error) {
	if !slices.Contains([]string{"", "tcp", "udp"}, r.Proto) {
		return fmt.Errorf("proto: %q: want tcp or udp", r.Proto)
	}
	if !slices.Contains([]string{"", Exposed, Local}, r.Exposure) {
		return fmt.Errorf("exposure: %q: want %s or %s", r.Exposure, Exposed, Local)
	}
	if r.low, r.high, err = ports(r.Port); err != nil {
		return fmt.Errorf("port: %w", err)
	}
	for field, pattern := range map[string]string{"unit": r.Unit, "container": r.Container, "pod": r.Pod, "program": r.Program} {
		if _, err := path.Match(pattern, ""); err != nil {
			return fmt.Errorf("%s: %q: want a name, or a pattern with * and ?", field, pattern)
		}
	}
	if r.UID == "" {
		return nil
	}
	id := r.UID
	if u, err := user.Lookup(id); err == nil {
		id = u.Uid
	}
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return fmt.Errorf("uid: %q: want a number, or the name of a user", r.UID)
	}
	r.uid = uint32(n)
	return nil
}

// ports reads a port or a range; "" is all.
func ports(word string) (low, high uint16, err error) {
	if word == "" {
		return 0, 1<<16 - 1, nil
	}
	first, last, isRange := strings.Cut(word, "-")
	if !isRange {
		last = first
	}
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || from == 0 || to < from {
		return 0, 0, fmt.Errorf("%q: want a port, as 8080, or a range, as 8000-8099", word)
	}
	return uint16(from), uint16(to), nil
}

// Read reads the policy in a file. The error wraps an *fs.PathError where the file cannot be read; else it
// names the file, and what is wrong with it.
func Read(name string) (*Policy, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	defer f.Close()
	p, err := Parse(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", identity.Safe(name), err)
	}
	return p, nil
}

// Rules are the names of the rules.
func (p *Policy) Rules() []string {
	var names []string
	for i := range p.rules {
		names = append(names, p.rules[i].Name)
	}
	return names
}

// Check tells whether a listener is allowed. If it is not, rule is the first one that has its protocol and
// port, or None, and why says in which field it differs.
func (p *Policy) Check(l *Listener) (allowed bool, rule, why string) {
	rule, why = None, "no rule has the port"
	for i := range p.rules {
		r := &p.rules[i]
		if r.Proto != "" && r.Proto != l.Proto || l.Port < r.low || l.Port > r.high {
			continue
		}
		field := r.differs(l)
		if field == "" {
			return true, "", ""
		}
		if rule == None {
			rule, why = r.Name, field
		}
	}
	return false, rule, why
}

// differs says what of a listener on the port of a rule is not as the rule has it; "": nothing.
func (r *rule) differs(l *Listener) string {
	exposure := l.Exposure()
	var container, id, pod string
	if c := l.Where.Container; c != nil {
		container, id = c.Name, c.ID
	}
	if l.Where.Pod != nil {
		pod = l.Where.PodName()
	}
	unit := matches(r.Unit, l.Where.Unit) || !strings.Contains(r.Unit, ".") && matches(r.Unit+".service", l.Where.Unit)
	switch {
	case r.Exposure != "" && r.Exposure != exposure:
		return "it is " + exposure + ", the rule says " + r.Exposure
	case r.Unit != "" && !unit:
		return "the rule says unit " + identity.Safe(r.Unit)
	case r.Container != "" && !matches(r.Container, container) && !(len(r.Container) >= 12 && strings.HasPrefix(id, r.Container)):
		return "the rule says container " + identity.Safe(r.Container)
	case r.Pod != "" && !matches(r.Pod, pod):
		return "the rule says pod " + identity.Safe(r.Pod)
	case r.Program != "" && !slices.ContainsFunc(l.Programs, func(name string) bool { return matches(r.Program, name) }):
		return "the rule says program " + identity.Safe(r.Program)
	case r.UID != "" && r.uid != l.UID:
		return "the rule says user " + identity.Safe(r.UID)
	}
	return ""
}

func matches(pattern, name string) bool {
	ok, err := path.Match(strings.ReplaceAll(pattern, "/", "\x00"), strings.ReplaceAll(name, "/", "\x00"))
	return name != "" && (ok && err == nil || pattern == name)
}

// Write writes a policy that allows these listeners, and says in comments what it is.
func Write(out io.Writer, of []Listener) error {
	var b strings.Builder
	b.WriteString("# What may listen: written by porthole policy init from what listened then.\n" +
		"# A listener is allowed if one rule matches it; a key that a rule leaves out matches anything.\n" +
		"# Names may have * and ?.\n")
	seen := make(map[string]bool)
	for i := range of {
		if text := ruleOf(&of[i]); !seen[text] {
			if len(seen) == 0 {
				b.WriteString("allow:\n")
			}
			seen[text] = true
			b.WriteString(text)
		}
	}
	if len(seen) == 0 {
		b.WriteString("allow: [] # nothing listened\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// ruleOf is the text of a rule that allows a listener: where it runs, or else who it is of.
func ruleOf(l *Listener) string {
	text := fmt.Sprintf("  - proto: %s\n    port: %d\n    exposure: %s\n", l.Proto, l.Port, l.Exposure())
	add := func(field, name string) {
		if name != "" {
			text += "    " + field + ": " + strconv.QuoteToASCII(escape(name)) + "\n"
		}
	}
	switch c := l.Where.Container; {
	case l.Where.Pod != nil:
		add("pod", l.Where.PodName())
	case c != nil:
		add("container", cmp.Or(c.Name, c.ID))
	case !strings.HasSuffix(l.Where.Unit, ".scope"): // each login has another
		add("unit", l.Where.Unit)
	}
	if len(l.Programs) > 0 && printable(l.Programs[0]) {
		add("program", l.Programs[0])
	}
	if l.UID != 0 {
		text += fmt.Sprintf("    uid: %d\n", l.UID)
	}
	return text
}

// printable tells whether a name can be written in a file: the kernel keeps any bytes.
func printable(name string) bool {
	return utf8.ValidString(name) && strings.IndexFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// escape makes of a name the pattern that matches it alone.
func escape(name string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(name)
}
