package tracer

import "testing"

// Processes come and go, and those that are in use keep their numbers.
func TestProcesses(t *testing.T) {
	p := newProcesses()
	if n := p.use(&Process{}); n != 0 {
		t.Errorf("nobody has number %d", n)
	}
	stays := proc(1)
	kept := p.use(&stays)
	for pid := range uint32(1000) {
		comes := proc(10 + pid)
		n, again := p.use(&comes), p.use(&comes)
		if n != again || p.at(n) != comes || p.at(kept) != stays {
			t.Fatalf("%+v has numbers %d and %d, which are %+v", comes, n, again, p.at(n))
		}
		p.drop(n)
		p.drop(n)
		if n := p.use(&comes); p.at(n) != comes { // again, before the number is another's
			t.Fatalf("%d is %+v, want %+v", n, p.at(n), comes)
		}
		p.drop(n)
	}
	if len(p.list) > 3 || len(p.number) > 2 {
		t.Errorf("%d numbers, %d processes for 2 at a time", len(p.list), len(p.number))
	}
}
