package metrics

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// What bounds the labels: at once, and over time. A Prometheus keeps every series that it
// has ever seen, and anybody can make processes, namespaces and destinations of other names
// all the time.

// keepPlace is how long a name keeps its place after it was last shown.
const keepPlace = time.Hour

// maxNetNS is how many names network namespaces have within keepPlace. At most half of
// them are numbers: every user may make namespaces without a name.
const maxNetNS = 256

// namer gives network namespaces labels, to each its own, for as long as it
// exists.
type namer struct {
	byID       map[identity.NetNS]string
	containers map[identity.NetNS]string // as first seen: which sockets there are must not rename a namespace
	held       map[string]time.Time      // every label within keepPlace, when it was last given
	numbers    map[string]bool           // those of held that are numbers
}

func newNamer() *namer {
	return &namer{map[identity.NetNS]string{}, map[identity.NetNS]string{}, map[string]time.Time{}, map[string]bool{}}
}

// name is the label of a namespace.
func (n *namer) name(id identity.NetNS) string {
	if name, ok := n.byID[id]; ok {
		return name
	}
	return other
}

// update forgets the namespaces that are gone, and names those there are: as named does
// ("host", /run/netns), else after their container, else by number.
func (n *namer) update(spaces []tracer.PortSpace, named func(identity.NetNS) string, containers map[identity.NetNS]string, now time.Time) {
	names := make(map[identity.NetNS]string)
	for _, sp := range spaces {
		id := idOf(&sp)
		names[id] = ""
	}
	for id := range names {
		names[id] = identity.Safe(named(id))
	}
	maps.DeleteFunc(n.held, func(_ string, seen time.Time) bool { return now.Sub(seen) >= keepPlace })
	maps.DeleteFunc(n.numbers, func(label string, _ bool) bool { return n.held[label].IsZero() })
	old := *n
	n.byID, n.containers = make(map[identity.NetNS]string), make(map[identity.NetNS]string)
	for id := range names {
		if container := cmp.Or(old.containers[id], containers[id]); container != "" {
			n.containers[id] = container
		}
	}
	taken := map[string]bool{other: true}
	for _, id := range old.order(names, n.containers) {
		for _, label := range []string{names[id], n.containers[id], strconv.Itoa(int(id.Inode))} {
			if label == "" || taken[label] || label == hostLabel && label != names[id] {
				continue
			}
			if n.place(label, label != names[id] && label != n.containers[id], now) {
				n.byID[id], taken[label] = label, true
				break
			}
		}
	}
}

// order is who chooses first: the machine's own namespace, then those that have a label
// already, then those that have a name, then by number.
func (n *namer) order(names, containers map[identity.NetNS]string) []identity.NetNS {
	rank := func(id identity.NetNS) int {
		switch {
		case names[id] == hostLabel:
			return 0
		case n.byID[id] != "":
			return 1
		case names[id] != "" || containers[id] != "":
			return 2
		}
		return 3
	}
	return slices.SortedFunc(maps.Keys(names), func(a, b identity.NetNS) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Inode, b.Inode), cmp.Compare(a.Cookie, b.Cookie))
	})
}

// hostLabel is the label of the machine's own namespace, which always has it.
const hostLabel = "host"

// place gives a label a place, if it has none and there is room.
func (n *namer) place(label string, number bool, now time.Time) bool {
	if _, ok := n.held[label]; !ok && label != hostLabel && (len(n.held) >= maxNetNS || number && len(n.numbers) >= maxNetNS/2) {
		return false
	}
	n.held[label] = now
	if number {
		n.numbers[label] = true
	}
	return true
}

func idOf(sp *tracer.PortSpace) identity.NetNS {
	return identity.NetNS{Inode: sp.NetNS, Cookie: sp.NetNSCookie}
}

const (
	// topK is how many values of a label have series of their own at once, unless top.most says
	// otherwise, maxPlaces how many within keepPlace.
	topK      = 20
	maxPlaces = 3 * topK
	// fewPorts is below what a value is small. Those get at most topK of the places: a
	// crawler is connected to other hosts at every scrape.
	fewPorts = 8
)

// top chooses which label values have series of their own: of those that have a place the
// greatest. The zero value is ready.
type top[K comparable] struct {
	held map[K]place
	most int // how many at once, of topK; three times as many have a place; 0: topK
}

// place is what a value has that had series within keepPlace.
type place struct {
	seen  time.Time
	small bool // and never was greater
}

// counted is a label value and what counts for its place.
type counted[K comparable] struct {
	key   K
	ports int
}

// choose returns those that have series of their own. ranked is every value, the
// greatest first.
func (t *top[K]) choose(ranked []counted[K], now time.Time) map[K]bool {
	if t.held == nil {
		t.held = make(map[K]place)
	}
	most := cmp.Or(t.most, topK)
	maps.DeleteFunc(t.held, func(_ K, p place) bool { return now.Sub(p.seen) >= keepPlace })
	small := 0
	for _, p := range t.held {
		if p.small {
			small++
		}
	}
	chosen := make(map[K]bool)
	for _, c := range ranked {
		if len(chosen) == most {
			break
		}
		p, ok := t.held[c.key]
		switch isSmall := c.ports < fewPorts; {
		case !ok && (len(t.held) >= 3*most || isSmall && small >= most):
			continue // it waits
		case !ok && isSmall:
			small++
			p.small = true
		case p.small && !isSmall:
			small--
			p.small = false
		}
		p.seen = now
		t.held[c.key], chosen[c.key] = p, true
	}
	return chosen
}

// sum returns the counts of those chosen, and adds the others to what rest makes
// of their key. compare orders equal counts.
func (t *top[K]) sum(counts map[K]int, compare func(a, b K) int, rest func(K) K, now time.Time) map[K]int {
	chosen := t.choose(ranked(counts, compare), now)
	sums := make(map[K]int)
	for k, n := range counts {
		if !chosen[k] {
			k = rest(k)
		}
		sums[k] += n
	}
	return sums
}

// ranked orders counts, the greatest first. compare orders equal ones.
func ranked[K comparable](counts map[K]int, compare func(a, b K) int) []counted[K] {
	out := make([]counted[K], 0, len(counts))
	for k, n := range counts {
		out = append(out, counted[K]{k, n})
	}
	slices.SortFunc(out, func(a, b counted[K]) int { return cmp.Or(cmp.Compare(b.ports, a.ports), compare(a.key, b.key)) })
	return out
}
