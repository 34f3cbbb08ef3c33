package tracer

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel's programs stamp events with its own CLOCK_BOOTTIME, which no time
// namespace shifts; processes in one read a shifted clock.

// clockNow reads a clock as this process sees it, in nanoseconds.
func clockNow(clock int32) int64 {
	var ts unix.Timespec
	// The clocks used here exist on every supported kernel.
	_ = unix.ClockGettime(clock, &ts)
	return ts.Nano()
}

// Boottime is the kernel's CLOCK_BOOTTIME now, that of its first time namespace, as events have it.
func Boottime() time.Duration { return time.Duration(boottime()) }

// boottime is the present CLOCK_BOOTTIME of the kernel, nanoseconds.
func boottime() uint64 { return uint64(clockNow(unix.CLOCK_BOOTTIME) - bootShift()) }

// bootShift is how far the clock of this process is ahead of the kernel's. It
// cannot change while the process lives.
var bootShift = sync.OnceValue(func() int64 {
	f, err := os.Open("/proc/self/timens_offsets")
	if err != nil {
		return 0 // a kernel without time namespaces
	}
	defer f.Close()
	return parseBootShift(f)
})

// parseBootShift reads "boottime  SECONDS  NANOSECONDS" among such lines.
func parseBootShift(r io.Reader) int64 {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 || fields[0] != "boottime" && fields[0] != "7" {
			continue
		}
		s, errS := strconv.ParseInt(fields[1], 10, 64)
		ns, errNS := strconv.ParseInt(fields[2], 10, 64)
		if errS == nil && errNS == nil {
			return s*int64(time.Second) + ns
		}
	}
	return 0
}

// wallClock tells the wall-clock time of CLOCK_BOOTTIME zero. That changes only
// when somebody sets the clock; but to read it takes two clocks, one after the
// other, and what comes in between is doubt.
type wallClock struct {
	zero  time.Time
	doubt time.Duration
}

// read looks at the clocks.
func (c *wallClock) read() {
	before := int64(boottime())
	wall := clockNow(unix.CLOCK_REALTIME)
	c.learn(before, wall, int64(boottime()))
}

// learn takes the wall clock as it was between two readings of CLOCK_BOOTTIME. What
// is known is kept, unless the clock was set or is now read better.
func (c *wallClock) learn(before, wall, after int64) {
	doubt := time.Duration(after - before)
	zero := time.Unix(0, wall-before-int64(doubt/2))
	if c.zero.IsZero() || doubt < c.doubt || zero.Sub(c.zero).Abs() > doubt+c.doubt {
		c.zero, c.doubt = zero, doubt
	}
}
