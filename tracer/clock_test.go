package tracer

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The wall-clock time of an event is that of the clock as it was set last; what is
// read badly does not replace what was read well.
func TestWallClock(t *testing.T) {
	const us = int64(time.Microsecond)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var c wallClock
	for _, step := range []struct {
		name          string
		before, after int64
		zero          time.Time // what the wall clock says less what CLOCK_BOOTTIME does
		want          time.Time
	}{
		{"first", 0, 40 * us, at, at.Add(-20 * time.Microsecond)},
		{"better", 1000 * us, 1002 * us, at, at.Add(-time.Microsecond)},
		{"worse, but it agrees", 2000 * us, 2900 * us, at, at.Add(-time.Microsecond)},
		{"set ahead", 3000 * us, 3004 * us, at.Add(time.Hour), at.Add(time.Hour - 2*time.Microsecond)},
		{"set back, by a second", 4000 * us, 4004 * us, at.Add(time.Hour - time.Second), at.Add(time.Hour - time.Second - 2*time.Microsecond)},
	} {
		c.learn(step.before, step.zero.UnixNano()+step.before, step.after)
		if !c.zero.Equal(step.want) {
			t.Errorf("%s: CLOCK_BOOTTIME began at %v, want %v", step.name, c.zero, step.want)
		}
	}
}

func TestParseBootShift(t *testing.T) {
	for in, want := range map[string]int64{
		"": 0,
		"monotonic           0         0\nboottime            0         0\n":    0,
		"monotonic         5         0\nboottime       100000         7\n":      100000*int64(time.Second) + 7,
		"monotonic 0 0\nboottime -2 500000000\n":                                -1500 * int64(time.Millisecond),
		"boottime 1\nboottime x 0\nsomething else entirely\nboottime 1 1 1 1\n": 0,
	} {
		if got := parseBootShift(strings.NewReader(in)); got != want {
			t.Errorf("%q: %d, want %d", in, got, want)
		}
	}
}

// In a time namespace CLOCK_BOOTTIME is shifted, for this process but not for the
// programs in the kernel.
func TestBootShift(t *testing.T) {
	if os.Getenv("PORTHOLE_TEST_SHIFTED") != "" {
		if got := bootShift(); got != 100_000*int64(time.Second) {
			t.Errorf("the clock is ahead by %v, want 100000s", time.Duration(got))
		}
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--user", "--time", "--fork", "--boottime=100000", exe, "-test.run=^TestBootShift$")
	cmd.Env = append(os.Environ(), "PORTHOLE_TEST_SHIFTED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if got := bootShift(); got != 0 {
		t.Errorf("here the clock is ahead by %v", time.Duration(got))
	}
}
