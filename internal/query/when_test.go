package query

import (
	"testing"
	"time"
)

// Times are understood as people write them, and mean as much of time as they say.
func TestParseMoment(t *testing.T) {
	zone := time.FixedZone("X", 2*3600)
	now := time.Date(2026, 11, 28, 1, 30, 15, 0, zone) // a Saturday
	at := func(day, hour, min, sec int) time.Time { return time.Date(2026, 11, day, hour, min, sec, 0, zone) }
	for in, want := range map[string]struct {
		from time.Time
		long time.Duration
	}{
		"now": {now, 0}, "1h": {now.Add(-time.Hour), 0}, "2h ago": {now.Add(-2 * time.Hour), 0}, "7d": {at(21, 1, 30, 15), 0}, "1h30m": {at(28, 0, 0, 15), 0},
		"01:12": {at(28, 1, 12, 0), time.Minute}, "03:12": {at(27, 3, 12, 0), time.Minute}, "3:12": {at(27, 3, 12, 0), time.Minute}, "03:12:05": {at(27, 3, 12, 5), time.Second},
		"today": {at(28, 0, 0, 0), 24 * time.Hour}, "yesterday": {at(27, 0, 0, 0), 24 * time.Hour}, "Yesterday  03:00": {at(27, 3, 0, 0), time.Minute},
		"today 03:00": {at(28, 3, 0, 0), time.Minute}, "monday 03:00": {at(23, 3, 0, 0), time.Minute}, "fri": {at(27, 0, 0, 0), 24 * time.Hour}, "saturday 01:00": {at(28, 1, 0, 0), time.Minute},
		"2026-11-20": {at(20, 0, 0, 0), 24 * time.Hour}, "2026-11-20 03:00": {at(20, 3, 0, 0), time.Minute}, "2026-11-20T03:00:01": {at(20, 3, 0, 1), time.Second},
		"2026-11-20T03:00:00Z": {at(20, 5, 0, 0), time.Second}, "2026-11-20T03:00:00.5+02:00": {at(20, 3, 0, 0).Add(time.Second / 2), 0},
		"@1795734015": {time.Unix(1795734015, 0), time.Second},
	} {
		got, err := ParseMoment(in, now)
		if err != nil || !got.From.Equal(want.from) || got.To.Sub(got.From) != max(want.long-1, 0) {
			t.Errorf("%q: from %v for %v, %v; want %v for %v", in, got.From, got.To.Sub(got.From), err, want.from, want.long)
		}
	}
	for _, in := range []string{"", "25:00", "03", "3", "tomorrow", "yesterday 3", "2026-13-01", "1y", "-1h", "2026-11-20 03:00 PM", "@", "mo 03:00"} {
		if got, err := ParseMoment(in, now); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{"256MiB": 256 << 20, "1G": 1 << 30, "5k": 5 << 10, "268435456": 256 << 20, "2 MB": 2 << 20, "2GiB": 2 << 30} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "-1", "1T", "1MiBs", "x", "99999999999999999999", "1.5G"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("%q: %d", in, got)
		}
	}
}

// A question of the history is refused where it cannot be meant, and has its times by a clock that is the
// same for whoever answers.
func TestParseHistory(t *testing.T) {
	now := time.Date(2026, 11, 28, 1, 30, 15, 0, time.UTC)
	for _, bad := range []Values{
		{"since": {"x"}}, {"at": {"03:12"}, "since": {"1h"}}, {"since": {"1h"}, "until": {"2h"}}, {"at": {"1h", "2h"}}, {"port": {"80", "81"}},
		{"port": {"80"}, "lport": {"81"}}, {"failures": {"maybe"}}, {"state": {"LISTEN"}}, {"limit": {"-1"}}, {"port": {"http"}},
	} {
		if _, err := ParseHistory(bad, now); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
	q, err := ParseHistory(Values{"at": {"yesterday 03:12"}, "listeners": {"true"}, EitherPort: {"80"}}, now)
	if err != nil {
		t.Fatal(err)
	}
	q.Limit = 7
	later, err := ParseHistory(q.Values(), now.Add(48*time.Hour))
	if err != nil || !later.Since.Equal(q.Since) || !later.Until.Equal(q.Until) || later.Limit != 7 || !later.listeners || len(later.port) != 1 {
		t.Errorf("%+v, %v; want what was asked", later, err)
	}
}
