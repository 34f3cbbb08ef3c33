package identity

import (
	"strconv"
	"strings"
	"testing"
	"unicode"
)

func TestParseServices(t *testing.T) {
	n := ParseServices(strings.NewReader(`
# comment
#http-old 80/tcp
my-web   8080/tcp  alias1 alias2  # what it is for
my-dns	8053/udp
my-dns	8053/tcp
first    9000/tcp
second   9000/tcp
packed   9001/tcp#comment without a space
    indented 9002/udp
bad
bad 9003
bad 9003/
bad /tcp
bad tcp/9003
bad 9003/sctp
bad 9003/TCP
bad -1/tcp
bad 65536/tcp
bad 9003 /tcp
https    8443/tcp
web      443/tcp
last     65535/udp`))
	for _, test := range []struct {
		port uint16
		udp  bool
		want string
	}{
		{8080, false, "my-web"},
		{8053, true, "my-dns"},
		{8053, false, "my-dns"},
		{9000, false, "first"},
		{9001, false, "packed"},
		{9002, true, "indented"},
		{8443, false, "https"},
		{443, false, "web"},   // the machine's name comes before IANA's
		{65535, true, "last"}, // without a newline at the end
		{65535, false, ""},    // tcp and udp are separate
		{443, true, "https"},  // so this is IANA's
		{8080, true, "http-alt"},
	} {
		if got := n.Name(test.port, test.udp); got != test.want {
			t.Errorf("port %d udp %t: %q, want %q", test.port, test.udp, got, test.want)
		}
	}
	for k, name := range n.local {
		if name == "bad" || strings.HasPrefix(name, "alias") {
			t.Errorf("%+v is named %q", k, name)
		}
	}
}

func TestParseServicesLongLine(t *testing.T) {
	n := ParseServices(strings.NewReader("# " + strings.Repeat("x", 1<<20) + "\nafter 9000/tcp\n"))
	if got := n.Name(9000, false); got != "after" {
		t.Errorf("port 9000: %q: a long line ended the file", got)
	}
}

func TestNameOfIANA(t *testing.T) {
	for _, n := range []Services{{}, ParseServices(strings.NewReader(""))} {
		for _, test := range []struct {
			port uint16
			udp  bool
			want string
		}{
			{443, false, "https"},
			{53, true, "domain"},
			{53, false, "domain"},
			{22, false, "ssh"},
			{0, false, ""},
			{65535, true, ""},
		} {
			if got := n.Name(test.port, test.udp); got != test.want {
				t.Errorf("port %d udp %t: %q, want %q", test.port, test.udp, got, test.want)
			}
		}
	}
}

// The list is in order, and each line of it is found.
func TestIANA(t *testing.T) {
	before := -1
	for line := range strings.Lines(iana) {
		fields := strings.Fields(line)
		port, err := strconv.ParseUint(fields[0], 10, 16)
		if err != nil || int(port) <= before || len(fields) < 2 || len(fields) > 3 || line != strings.Join(fields, " ")+"\n" {
			t.Fatalf("line %q after port %d", line, before)
		}
		before = int(port)
		for udp, name := range map[bool]string{false: fields[1], true: fields[len(fields)-1]} {
			if name == "-" {
				name = ""
			}
			if got := nameOfIANA(uint16(port), udp); got != name {
				t.Errorf("port %d udp %t: %q, want %q", port, udp, got, name)
			}
		}
	}
	if before < 48000 {
		t.Errorf("the last port is %d", before)
	}
}

func TestClassOf(t *testing.T) {
	for port, want := range map[uint16]PortClass{
		0: SystemPort, 1: SystemPort, 1023: SystemPort,
		1024: RegisteredPort, 49151: RegisteredPort,
		49152: DynamicPort, 65535: DynamicPort,
	} {
		if got := ClassOf(port); got != want {
			t.Errorf("port %d is %s, want %s", port, got, want)
		}
	}
}

func BenchmarkServiceName(b *testing.B) {
	n := ParseServices(strings.NewReader(""))
	for i := range b.N {
		n.Name(uint16(i*7), false)
	}
}

func FuzzParseServices(f *testing.F) {
	f.Add("http 80/tcp\n", uint16(80), false)
	f.Add("# x\na\t1/udp b#c", uint16(1), true)
	f.Add("\x00 80/tcp\r\n\n 99999/tcp", uint16(1), false)
	f.Fuzz(func(t *testing.T, file string, port uint16, udp bool) {
		name := ParseServices(strings.NewReader(file)).local[serviceKeyOf(port, udp)]
		if strings.ContainsFunc(name, unicode.IsSpace) || strings.Contains(name, "#") {
			t.Errorf("name %q of port %d", name, port)
		}
		if name != "" && !strings.Contains(file, name) {
			t.Errorf("name %q is not in the file", name)
		}
		// Whatever comes before, a good line is read, unless its port has a name.
		proto := "tcp"
		if udp {
			proto = "udp"
		}
		after := ParseServices(strings.NewReader(file + "\nfuzz " + strconv.Itoa(int(port)) + "/" + proto)).local[serviceKeyOf(port, udp)]
		if want := name; after != want && (want != "" || after != "fuzz") {
			t.Errorf("port %d is %q with a line more, and %q without", port, after, want)
		}
	})
}
