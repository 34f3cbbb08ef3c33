package agent

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// What bounds the labels: names that stay, and not too many of them.

// maxNetNS is how many network namespaces have a name of their own.
const maxNetNS = 256

// namer gives network namespaces labels, to each its own, for as long as it
// exists.
type namer struct {
	byInode    map[uint32]string
	containers map[uint32]string // as first seen: which sockets there are must not rename a namespace
}

func newNamer() *namer {
	return &namer{map[uint32]string{}, map[uint32]string{}}
}

// name is the label of a namespace.
func (n *namer) name(inode uint32) string {
	if name, ok := n.byInode[inode]; ok {
		return name
	}
	return other
}

// update forgets the namespaces that are gone, and names those there are: as in
// named ("host", /run/netns), else after their container, else by number.
func (n *namer) update(spaces []tracer.PortSpace, named, containers map[uint32]string) {
	var inodes []uint32
	for _, sp := range spaces {
		inodes = append(inodes, sp.NetNS)
	}
	// The machine's own first, then those that have a name already, then by number.
	slices.SortFunc(inodes, func(a, b uint32) int {
		return cmp.Or(cmp.Compare(n.rank(a, named), n.rank(b, named)), cmp.Compare(a, b))
	})
	inodes = slices.Compact(inodes)
	old := *n
	*n = *newNamer()
	taken := map[string]bool{other: true}
	for _, inode := range inodes[:min(len(inodes), maxNetNS)] {
		container := cmp.Or(old.containers[inode], containers[inode])
		if container != "" {
			n.containers[inode] = container
		}
		for _, name := range []string{render.Safe(named[inode]), container, strconv.Itoa(int(inode))} {
			if name != "" && !taken[name] {
				n.byInode[inode], taken[name] = name, true
				break
			}
		}
	}
}

func (n *namer) rank(inode uint32, named map[uint32]string) int {
	switch {
	case named[inode] == "host":
		return 0
	case n.byInode[inode] != "":
		return 1
	}
	return 2
}

const (
	// fewPorts is below what a label value of top is small.
	fewPorts = 8
	// holdSmall is how long a small one keeps its place.
	holdSmall = 10 * time.Minute
)

// top chooses which label values have series of their own, at most topK: the
// greatest. A small one keeps the place it gets for holdSmall, even when it is gone:
// a crawler, which is connected to other hosts at every scrape, must not make a
// million series. The zero value is ready.
type top[K comparable] struct {
	held map[K]time.Time // the small ones, and since when
}

// counted is a label value and what counts for its place.
type counted[K comparable] struct {
	key   K
	ports int
}

// choose returns those that have series of their own. ranked is every value, the
// greatest first.
func (t *top[K]) choose(ranked []counted[K], now time.Time) map[K]bool {
	chosen := make(map[K]bool)
	for _, c := range ranked {
		if len(chosen) == topK {
			break
		}
		if c.ports >= fewPorts {
			chosen[c.key] = true
		}
	}
	held := make(map[K]time.Time)
	room := func() bool { return len(chosen)+len(held) < topK }
	for k, since := range t.held {
		if !chosen[k] && room() && now.Sub(since) < holdSmall {
			held[k] = since
		}
	}
	for _, c := range ranked {
		if !room() {
			break
		}
		if _, ok := held[c.key]; !ok && !chosen[c.key] {
			held[c.key] = now
		}
	}
	for k := range held {
		chosen[k] = true
	}
	t.held = held
	return chosen
}

// sum returns the counts of those chosen, and adds the others to what rest makes
// of their key. compare orders equal counts.
func (t *top[K]) sum(counts map[K]int, compare func(a, b K) int, rest func(K) K, now time.Time) map[K]int {
	ranked := make([]counted[K], 0, len(counts))
	for k, n := range counts {
		ranked = append(ranked, counted[K]{k, n})
	}
	slices.SortFunc(ranked, func(a, b counted[K]) int { return cmp.Or(cmp.Compare(b.ports, a.ports), compare(a.key, b.key)) })
	chosen := t.choose(ranked, now)
	sums := make(map[K]int)
	for _, c := range ranked {
		k := c.key
		if !chosen[k] {
			k = rest(k)
		}
		sums[k] += c.ports
	}
	return sums
}
