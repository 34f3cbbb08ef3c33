package main

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
)

// What people type by habit from ss(8), netstat(8) and lsof(8), in the words of ls.

// habit takes the arguments of ls apart. The error is of usage, and names what does instead.
type habit struct {
	cmd  *cobra.Command // ls
	args []string       // still to be read
	out  []string
	pids bool // -t was given before or after -i, as lsof -ti has it
	spec bool // -i was given with what it is about
}

// fromHabit translates the arguments of ls; note is for standard error, "": there is none.
func fromHabit(ls *cobra.Command, args []string) (out []string, note string, err error) {
	h := &habit{cmd: ls, args: args}
	for len(h.args) > 0 && err == nil {
		word := h.take()
		switch {
		case word == "--":
			h.add("--")
			h.add(h.args...)
			h.args = nil
		case strings.HasPrefix(word, "--"):
			err = h.long(word)
		case strings.HasPrefix(word, "-") && word != "-":
			err = h.cluster(word)
		case isExpression(word):
			err = h.expression(word)
		case strings.HasPrefix(word, "+") && len(word) > 1 && word[1] == 'c': // lsof
			err = usagef("%s: names have 15 bytes in the kernel; porthole who PORT has the command line", identity.Safe(word))
		default:
			h.add(word)
		}
	}
	if h.pids && h.spec {
		note = "-t means TCP here, not the pids alone of lsof: those are in who PORT --json"
	}
	return h.out, note, err
}

func (h *habit) add(words ...string) { h.out = append(h.out, words...) }

func (h *habit) take() string {
	word := h.args[0]
	h.args = h.args[1:]
	return word
}

// value is the argument of an option: what follows it in the same word, or the next word.
func (h *habit) value(rest string) (string, bool) {
	if rest != "" {
		return strings.TrimPrefix(rest, "="), true
	}
	if len(h.args) > 0 && !strings.HasPrefix(h.args[0], "-") {
		return h.take(), true
	}
	return "", false
}

// long passes the long options of ls on, each with its value, and drops those that ask for what is
// shown anyway.
func (h *habit) long(word string) error {
	name, _, glued := strings.Cut(strings.TrimPrefix(word, "--"), "=")
	if f := h.cmd.Flags().Lookup(name); f != nil {
		h.add(word)
		if f.NoOptDefVal == "" && !glued && len(h.args) > 0 {
			h.add(h.take())
		}
		return nil
	}
	switch name {
	case "extended", "options", "memory", "oneline", "program", "programs", "numeric-ports", "numeric-hosts", "numeric-users", "timers", "info",
		"no-queues", "verbose":
		return nil
	case "query", "family":
		_, rest, _ := strings.Cut(word, "=")
		return h.family(map[string]string{"query": "A", "family": "f"}[name], rest)
	case "inet":
		h.add("-4")
		return nil
	case "inet6":
		h.add("-6")
		return nil
	case "net":
		h.add("--netns")
		return nil
	}
	letter := map[string]string{
		"resolve": "r", "summary": "s", "statistics": "s", "events": "E", "kill": "K", "unix": "x", "raw": "w", "sctp": "S",
		"dccp": "d", "packet": "0", "continuous": "c", "route": "R", "context": "Z", "contexts": "z", "bpf": "b", "threads": "T", "diag": "D",
		"filter": "F", "mptcp": "M", "groups": "g", "cache": "C", "masquerade": "M", "udplite": "U",
	}[name]
	if letter = cmp.Or(letter, name); instead(letter) == "" {
		h.add(word) // which is refused in the usual way
		return nil
	}
	return notHere("--"+name, letter)
}

// instead says, of options of other tools that ls does not have, by their letter or else their name, what
// does that.
func instead(option string) string {
	return map[string]string{
		"r": "names of hosts are not looked up; ss -r does",
		"s": "for totals: porthole headroom, or ss -s",
		"E": "porthole tail follows what happens",
		"c": "porthole tail follows what happens; for one program: --comm NAME",
		"K": "porthole closes no socket; porthole who PORT says how to stop what has it",
		"x": "porthole shows TCP and UDP; ss -x shows unix sockets",
		"w": "porthole shows TCP and UDP; ss -w shows raw sockets",
		"S": "porthole shows TCP and UDP; ss -S shows SCTP",
		"d": "porthole shows TCP and UDP; ss -d shows DCCP",
		"0": "porthole shows TCP and UDP; ss -0 shows packet sockets",
		"R": "ip route shows routes",
		"V": "porthole version",
		"Z": "security contexts are not shown; ss -Z does",
		"z": "security contexts are not shown; ss -z does",
		"b": "socket filters are not shown; ss -b does",
		"T": "threads are not shown; ss -T does",
		"D": "porthole ls --json > FILE writes what porthole diff FILE compares",
		"F": "for programs: --json; filters are flags and arguments, as --lport 80",
		"M": "sockets of Multipath TCP are among the others, as tcp+mp",
		"g": "ip maddr shows multicast groups",
		"C": "ip route shows routes",
		"U": "porthole shows TCP and UDP; lsof -U shows unix sockets",

		"vsock":        "porthole shows TCP and UDP; ss --vsock shows VSOCK",
		"tipc":         "porthole shows TCP and UDP; ss --tipc shows TIPC",
		"xdp":          "porthole shows TCP and UDP; ss --xdp shows XDP sockets",
		"tos":          "the type of service is not shown; ss --tos does",
		"inet-sockopt": "--json has the options that matter to ports; ss --inet-sockopt shows others",
		"cgroup":       "--json has the unit, container and pod of each socket",
	}[option]
}

func notHere(option, letter string) error {
	return usagef("%s: %s; see porthole ls --help", option, instead(letter))
}

var pidList = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9]+(,[0-9]+)*$`) })

// cluster reads short options, some of which take the rest of the word, or the next one.
func (h *habit) cluster(word string) error {
	for rest := word[1:]; rest != ""; {
		letter := rest[:1]
		rest = rest[1:]
		alone := word == "-"+letter
		switch letter {
		case "o": // of ss timers, which are not shown; of kubectl what it is followed by
			if alone && len(h.args) > 0 && h.args[0] == "wide" {
				h.take()
				h.add("--wide")
			}
		case "W":
			h.add("--wide")
		case "e", "m", "O", "P", "Q", "v": // more columns, or none of what is not shown
		case "H":
			h.add("--no-header")
		case "p":
			if pidList().MatchString(rest) || alone && len(h.args) > 0 && pidList().MatchString(h.args[0]) { // lsof
				pids, _ := h.value(rest)
				h.add("--pid", pids)
				return nil
			}
			h.add("-p")
		case "u":
			if alone && len(h.args) > 0 && isUser(h.args[0]) { // lsof
				h.add("--uid", h.take())
				return nil
			}
			h.add("-u")
		case "i":
			if rest != "" && !internetSpec().MatchString(rest) { // ss, of whose information nothing is shown
				continue
			}
			h.pids = h.pids || strings.Contains(word[:len(word)-len(rest)], "t")
			return h.internet(rest)
		case "s":
			return h.states(rest)
		case "c":
			name, ok := h.value(rest)
			if !ok || !strings.HasPrefix(word, "-c") {
				return notHere("-c", "c")
			}
			h.add("--comm", name+"*") // lsof: that begin so
			return nil
		case "N":
			h.add("--netns")
			if rest != "" {
				h.add(rest)
			}
			return nil
		case "A", "f":
			return h.family(letter, rest)
		case "r":
			if pidList().MatchString(rest) || alone && len(h.args) > 0 && pidList().MatchString(h.args[0]) { // lsof: seconds
				return usagef("-r: porthole top shows it again and again; see porthole ls --help")
			}
			return notHere("-r", "r")
		case "E", "K", "x", "w", "S", "d", "0", "V", "Z", "z", "b", "T", "D", "F", "M", "g", "C", "U":
			return notHere("-"+letter, letter)
		default:
			h.pids = h.pids || letter == "t"
			h.add("-" + letter)
		}
	}
	return nil
}

// isUser tells whether a word after -u is a user and nothing that ls takes.
func isUser(word string) bool {
	if _, err := query.ParseEndsWord(word); err == nil || isExpression(word) {
		return false
	}
	_, err := query.ParseFilter(query.OfSockets, query.Values{"uid": strings.Split(word, ",")})
	return err == nil
}

// family is ss -A and -f.
func (h *habit) family(letter, rest string) error {
	list, _ := h.value(rest)
	for _, name := range strings.Split(strings.ToLower(list), ",") {
		flag, ok := map[string]string{
			"tcp": "-t", "udp": "-u", "inet": "", "all": "", "inet4": "-4", "inet6": "-6",
		}[name]
		if letter == "f" && name == "inet" {
			flag = "-4"
		}
		if !ok {
			return usagef("-%s %s: want -t, -u, -4 or -6: porthole shows TCP and UDP; see porthole ls --help", letter, identity.Safe(list))
		}
		if flag != "" {
			h.add(flag)
		}
	}
	return nil
}

var internetSpec = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)^([46])?(tcp|udp)?(@(?:\[[^]]*\]|[^:@]*))?(?::(.+))?$`)
})

// internet is lsof -i, with what it is about or without: [46][protocol][@host][:ports].
func (h *habit) internet(rest string) error {
	spec := rest
	if spec == "" && len(h.args) > 0 && internetSpec().MatchString(h.args[0]) {
		spec = h.take()
	}
	m := internetSpec().FindStringSubmatch(spec)
	h.spec = h.spec || spec != ""
	family, proto, host, ports := m[1], strings.ToLower(m[2]), strings.TrimPrefix(m[3], "@"), m[4]
	if family != "" {
		h.add("-" + family)
	}
	if ports == "" {
		if host != "" {
			h.add("--addr", host)
		}
		if proto != "" {
			h.add("--proto", proto)
		}
		return nil
	}
	if strings.Contains(host, ":") && !strings.HasPrefix(host, "[") {
		host = "[" + host + "]"
	}
	for _, port := range strings.Split(ports, ",") {
		end := host + ":" + port
		if proto != "" {
			end = proto + "/" + end
		}
		h.add("--end", end)
	}
	return nil
}

// states is lsof -s; -s alone asks ss and netstat for totals.
func (h *habit) states(rest string) error {
	isStates := func(s string) bool {
		return strings.HasPrefix(strings.ToUpper(s), "TCP:") || strings.HasPrefix(strings.ToUpper(s), "UDP:")
	}
	if rest == "" && len(h.args) > 0 && isStates(h.args[0]) {
		rest = h.take()
	}
	if !isStates(rest) {
		return notHere("-s", "s")
	}
	proto, list, _ := strings.Cut(rest, ":")
	if strings.Contains(list, "^") {
		return usagef("-s %s: want the states to be shown, with --state", identity.Safe(rest))
	}
	if proto = strings.ToLower(proto); proto == "udp" {
		return usagef("-s %s: UDP sockets have no such states; --state UNCONN are those without a peer", identity.Safe(rest))
	}
	h.add("--state", list)
	return nil
}

// isExpression tells whether a word begins a filter as ss(8) has it.
func isExpression(word string) bool {
	begin, _, _ := strings.Cut(strings.TrimLeft(word, "( "), " ")
	begin = strings.TrimRight(begin, "=<>!:")
	if name, _, ok := strings.Cut(begin, "="); ok {
		begin = name
	}
	return slices.Contains([]string{"!", "sport", "dport", "src", "dst", "state", "exclude", "not", "dev", "autobound", "fwmark", "cgroup"}, begin) ||
		strings.HasPrefix(word, "(") || strings.HasPrefix(word, "!(")
}

var operators = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`==|!=|<=|>=|=|<|>|\(|\)`) })

// expression reads what is left of the words as a filter of ss(8).
func (h *habit) expression(first string) error {
	words := []string{first}
	for len(h.args) > 0 && !strings.HasPrefix(h.args[0], "-") {
		words = append(words, h.take())
	}
	text := strings.Join(words, " ")
	x := expression{text: text, words: strings.Fields(operators().ReplaceAllString(text, " $0 ")), values: make(map[string][]string)}
	if err := x.read(); err != nil {
		return err
	}
	for _, name := range []string{"state", "lport", "rport", "port"} {
		if len(x.values[name]) > 0 {
			h.add("--"+name, strings.Join(x.values[name], ","))
		}
	}
	return nil
}

// expression is a filter of ss(8): of ports and states, each of which may have several values.
type expression struct {
	text   string
	words  []string
	values map[string][]string // by the names of filters
	or     bool                // some clauses are alternatives
	and    bool                // some are not
}

// read reads every clause.
func (x *expression) read() error {
	clauses := 0
	for len(x.words) > 0 {
		word := x.words[0]
		x.words = x.words[1:]
		switch word {
		case "(", ")":
			continue
		case "and", "&", "&&":
			x.and = true
			continue
		case "or", "|", "||":
			x.or = true
			continue
		case "state":
			if err := x.state(); err != nil {
				return err
			}
			continue // of several states each does, whatever is between them
		case "sport", "dport":
			name := map[string]string{"sport": "lport", "dport": "rport"}[word]
			ports, err := x.ports()
			if err != nil {
				return err
			}
			x.values[name] = append(x.values[name], ports)
			clauses++
		case "src", "dst":
			return x.address(word)
		case "exclude", "not", "!":
			return x.inverse()
		case "dev", "cgroup":
			return usagef("%q: want %s; see porthole ls --help", x.text,
				map[string]string{"dev": "--addr with an address of the device", "cgroup": "--unit, --container or --pod"}[word])
		default:
			return x.wrong()
		}
	}
	local, remote := x.values["lport"], x.values["rport"]
	switch {
	case x.or && x.and, !x.or && (len(local) > 1 || len(remote) > 1):
		return x.wrong()
	case x.or && len(local) > 0 && len(remote) > 0: // either side
		slices.Sort(local)
		slices.Sort(remote)
		if !slices.Equal(local, remote) {
			return x.wrong()
		}
		x.values["port"] = local
		delete(x.values, "lport")
		delete(x.values, "rport")
	case x.or && clauses < 2:
		return x.wrong()
	}
	return nil
}

func (x *expression) next() string {
	if len(x.words) == 0 {
		return ""
	}
	word := x.words[0]
	x.words = x.words[1:]
	return word
}

func (x *expression) state() error {
	switch name := x.next(); name {
	case "":
		return x.wrong()
	case "all":
	case "connected":
		x.values["state"] = append(x.values["state"], "ESTAB", "SYN-SENT", "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "CLOSE-WAIT", "LAST-ACK", "CLOSING")
	case "synchronized":
		x.values["state"] = append(x.values["state"], "ESTAB", "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "CLOSE-WAIT", "LAST-ACK", "CLOSING")
	case "closed":
		x.values["state"] = append(x.values["state"], "UNCONN")
	default:
		x.values["state"] = append(x.values["state"], name)
	}
	return nil
}

// ports reads an operator and a port, as a value of --lport.
func (x *expression) ports() (string, error) {
	operator := x.next()
	port := x.next()
	if strings.HasPrefix(operator, ":") { // the operator may be left out
		x.words = append([]string{port}, x.words...)
		if port == "" {
			x.words = nil
		}
		operator, port = "=", operator
	}
	port = strings.TrimPrefix(strings.TrimPrefix(port, "*"), ":")
	number, err := strconv.ParseUint(port, 10, 16)
	switch operator {
	case "=", "==", "eq":
		if port == "" {
			return "", x.wrong()
		}
		return port, nil
	case ">=", "ge", "geq":
		return fmt.Sprintf("%d-65535", number), x.unless(err == nil && number > 0)
	case "<=", "le", "leq":
		return fmt.Sprintf("1-%d", number), x.unless(err == nil && number > 0)
	case ">", "gt":
		return fmt.Sprintf("%d-65535", number+1), x.unless(err == nil && number < 65535)
	case "<", "lt":
		return fmt.Sprintf("1-%d", number-1), x.unless(err == nil && number > 1)
	}
	if slices.Contains([]string{"!=", "ne", "neq"}, operator) {
		return "", x.inverse()
	}
	return "", x.wrong()
}

// inverse asks for the opposite of what was typed.
func (x *expression) inverse() error {
	return usagef("%q: want what is to be shown, as --state ESTAB,LISTEN or --lport 1-21,23-65535; see porthole ls --help", x.text)
}

// address names what does the work of src and dst, which ls does not do for one side alone.
func (x *expression) address(word string) error {
	value := x.next()
	if value == "=" || value == "==" || value == "eq" {
		value = x.next()
	}
	if _, err := query.ParseEndsWord(value); err == nil && strings.Contains(value, ":") {
		return usagef("%q: want --end %s, which may be either side; see porthole ls --help", x.text, identity.Safe(value))
	}
	return usagef("%q: want --addr %s, which may be either side; see porthole ls --help", x.text, identity.Safe(cmp.Or(strings.Trim(value, "[]"), "ADDRESS")))
}

func (x *expression) unless(fine bool) error {
	if fine {
		return nil
	}
	return x.wrong()
}

func (x *expression) wrong() error {
	return usagef("%q: porthole understands sport, dport and state of the filters of ss(8), and \"or\" between ports of one side; "+
		"want --lport, --rport, --port, --addr or --state; see porthole ls --help", x.text)
}
