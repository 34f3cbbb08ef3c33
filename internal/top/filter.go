package top

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
)

// Kinds are those of all filters that a view has.
const Kinds = query.OfSockets | query.OfEvents | query.OfHeadroom | query.OfHistory

// filter is what is shown: flags as commands have them, and words that are searched for in what those
// let pass.
type filter struct {
	text   string
	values query.Values
	words  []string
}

// parseFilter reads a filter as it is typed.
func parseFilter(text string) (filter, error) {
	f := filter{text: strings.TrimSpace(text), values: make(query.Values)}
	args, err := splitWords(text)
	if err != nil {
		return f, err
	}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	params := query.Params(Kinds)
	for _, p := range params {
		if p.Bool {
			flags.BoolP(p.Name, p.Short, false, "")
		} else {
			flags.StringSliceP(p.Name, p.Short, nil, "")
		}
	}
	if err := flags.Parse(args); err != nil {
		return f, flagError(err)
	}
	f.words = flags.Args()
	for _, p := range params {
		flag := flags.Lookup(p.Name)
		if !flag.Changed {
			continue
		}
		if p.Bool {
			f.values[p.Name] = []string{flag.Value.String()}
			continue
		}
		list, err := flags.GetStringSlice(p.Name)
		if err != nil || len(list) == 0 || slices.Contains(list, "") {
			return f, fmt.Errorf("--%s: an empty value", p.Name)
		}
		f.values[p.Name] = list
	}
	return f, f.check()
}

// Check tells what is wrong with a filter.
func Check(text string) error {
	_, err := parseFilter(text)
	return err
}

// flagError says what was meant.
func flagError(err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return errors.New("flags are those of porthole ls --help and tail --help; any other word is searched for")
	}
	meant := ""
	if unknown := (*pflag.NotExistError)(nil); errors.As(err, &unknown) && len(unknown.GetSpecifiedName()) > 1 {
		var names []string
		for _, p := range query.Params(Kinds) {
			names = append(names, "--"+p.Name)
		}
		meant = query.Meant("--"+unknown.GetSpecifiedName(), names)
	}
	return fmt.Errorf("%w%s", err, meant)
}

// check refuses values that no view takes.
func (f *filter) check() error {
	_, sockets := query.ParseSockets(f.of(query.OfSockets))
	_, events := query.ParseEvents(f.of(query.OfEvents))
	_, headroom := query.ParseHeadroom(f.of(query.OfHeadroom))
	_, history := f.history(false, time.Now())
	for _, err := range []error{sockets, events, headroom, history} {
		if wrong := (*query.Wrong)(nil); errors.As(err, &wrong) && wrong.Param {
			return fmt.Errorf("--%w", err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// of are the values of filters that a kind has.
func (f *filter) of(kind query.Kind) query.Values {
	values := make(query.Values)
	for _, p := range query.Params(kind) {
		if list, ok := f.values[p.Name]; ok {
			values[p.Name] = list
		}
	}
	return values
}

// without names the filters that a kind does not have.
func (f *filter) without(kind query.Kind) []string {
	has := f.of(kind)
	var names []string
	for _, name := range slices.Sorted(maps.Keys(f.values)) {
		if _, ok := has[name]; !ok && !(name == "since" && kind == query.OfHistory) {
			names = append(names, "--"+name)
		}
	}
	return names
}

// asksForAll tells whether a filter is of sockets that the table of ports leaves out.
func (f *filter) asksForAll() bool {
	for _, name := range []string{"role", "state", "rport"} {
		if _, ok := f.values[name]; ok {
			return true
		}
	}
	return false
}

// FilterText is a filter as it is typed, of values and of words that are searched for.
func FilterText(values query.Values, search ...string) string {
	var words []string
	for _, p := range query.Params(Kinds) {
		for _, v := range values[p.Name] {
			switch {
			case p.Bool && v == "true":
				words = append(words, "--"+p.Name)
			case p.Bool:
				words = append(words, "--"+p.Name+"="+v)
			default:
				if strings.ContainsAny(v, ",\"\n\r") {
					v = `"` + strings.ReplaceAll(v, `"`, `""`) + `"`
				}
				words = append(words, "--"+p.Name, render.ShellWord(v))
			}
		}
	}
	for _, word := range search {
		if strings.HasPrefix(word, "-") { // it came after --
			words = append(words, "--")
			break
		}
	}
	for _, word := range search {
		words = append(words, render.ShellWord(word))
	}
	return strings.Join(words, " ")
}

// splitWords splits at spaces that are not quoted.
func splitWords(text string) ([]string, error) {
	var words []string
	var word strings.Builder
	begun, quote, escaped := false, rune(0), false
	for _, r := range text {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, begun = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, begun = r, true
		case r == ' ' || r == '\t':
			if begun {
				words = append(words, word.String())
				word.Reset()
				begun = false
			}
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("a quote has no end")
	}
	if begun {
		words = append(words, word.String())
	}
	return words, nil
}

// command is a command line that a shell takes as it stands.
func command(words ...string) string {
	for i := range words {
		words[i] = render.ShellWord(words[i])
	}
	return strings.Join(words, " ")
}

// space names a network namespace for --netns: by its name, or where that is not as a flag takes it by its
// inode number.
func space(name string, id identity.NetNS) string {
	if name != "" && identity.Safe(name) == name {
		return name
	}
	return number(id.Inode)
}
