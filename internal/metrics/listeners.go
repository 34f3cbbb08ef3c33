package metrics

import (
	"cmp"
	"maps"
	"math"
	"strings"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// mostListeners is how many series of porthole_listeners there are at once of each exposure, and how many
// of porthole_listener_backlog_ratio. A service has a few listeners, and a node a hundred pods.
const mostListeners = 200

// home is where listeners run, as far as that is known: unit only of what is in no container.
type home struct{ unit, container, pod string }

// elsewhere is those that have no series of their own.
var elsewhere = home{unit: other}

// listenersKey is what listeners are counted by.
type listenersKey struct {
	netns   string
	proto   tracer.Proto
	exposed bool
	home
}

// queueKey is what accept queues are told by.
type queueKey struct {
	netns string
	home
}

func exposure(exposed bool) string {
	if exposed {
		return "exposed"
	}
	return "local"
}

// listenersIn is the listeners of one cgroup in one network namespace, as the table has them.
type listenersIn struct {
	netns   identity.NetNS
	cgroup  uint64
	proto   tracer.Proto
	exposed bool
}

// addListener adds a socket to the listeners, if it is one.
func (c *census) addListener(s *tracer.Socket, reach *tracer.Reach) {
	if !s.Listens() {
		return
	}
	by := &s.Owner // who holds it, once a snapshot has told
	if len(s.Holders) > 0 {
		by = &s.Holders[0].Process
	}
	in := cgroupIn{identity.NetNS{Inode: s.NetNS, Cookie: s.NetNSCookie}, by.Cgroup}
	c.listeners[listenersIn{in.netns, in.cgroup, s.Proto, reach.Exposed(s)}]++
	if s.Backlog.Known {
		// The kernel lets one more wait than listen() asked for.
		c.queues[in] = max(c.queues[in], float64(s.Backlog.Waiting)/(float64(s.Backlog.Max)+1))
	}
}

func homeOf(in identity.Cgroup) home {
	h := home{container: identity.Safe(in.ContainerName()), pod: identity.Safe(in.PodName())}
	if in.Container == nil && !strings.HasSuffix(in.Unit, ".scope") { // each login has another scope
		h.unit = identity.Safe(in.Unit)
	}
	return h
}

// listenerPlaces bounds the series of listeners over time.
type listenerPlaces struct {
	exposed, local top[listenersKey] // apart: who may listen on loopback takes no place of what others reach
	queues         top[queueKey]
}

func newListenerPlaces() *listenerPlaces {
	return &listenerPlaces{
		exposed: top[listenersKey]{most: mostListeners}, local: top[listenersKey]{most: mostListeners}, queues: top[queueKey]{most: mostListeners},
	}
}

// fill gives a sample the listeners of a census, by names.
func (p *listenerPlaces) fill(s *sample, c *census, netns func(identity.NetNS) string, cgroups *identity.Cgroups, now time.Time) {
	exposed, local := make(map[listenersKey]int), make(map[listenersKey]int)
	for in, n := range c.listeners {
		k := listenersKey{netns(in.netns), in.proto, in.exposed, homeOf(cgroups.Resolve(in.cgroup))}
		if in.exposed {
			exposed[k] += n
		} else {
			local[k] += n
		}
	}
	rest := func(k listenersKey) listenersKey { return listenersKey{k.netns, k.proto, k.exposed, elsewhere} }
	s.listeners = p.exposed.sum(exposed, byListeners, rest, now)
	maps.Copy(s.listeners, p.local.sum(local, byListeners, rest, now))
	s.queues = p.fullest(c, netns, cgroups, now)
}

// fullest is how full the fullest accept queue of each home is.
func (p *listenerPlaces) fullest(c *census, netns func(identity.NetNS) string, cgroups *identity.Cgroups, now time.Time) map[queueKey]float64 {
	full, percent := make(map[queueKey]float64), make(map[queueKey]int)
	for in, share := range c.queues {
		k := queueKey{netns(in.netns), homeOf(cgroups.Resolve(in.cgroup))}
		full[k] = max(full[k], share)
		percent[k] = int(math.Ceil(100 * full[k])) // a queue that fills is no small one
	}
	chosen := p.queues.choose(ranked(percent, byQueue), now)
	out := make(map[queueKey]float64)
	for k, share := range full {
		if !chosen[k] {
			k.home = elsewhere
		}
		out[k] = max(out[k], share)
	}
	return out
}

func byListeners(a, b listenersKey) int {
	return cmp.Or(strings.Compare(a.netns, b.netns), cmp.Compare(a.proto, b.proto), a.home.compare(b.home))
}

func byQueue(a, b queueKey) int {
	return cmp.Or(strings.Compare(a.netns, b.netns), a.home.compare(b.home))
}

func (h home) compare(o home) int {
	return cmp.Or(strings.Compare(h.unit, o.unit), strings.Compare(h.container, o.container), strings.Compare(h.pod, o.pod))
}
