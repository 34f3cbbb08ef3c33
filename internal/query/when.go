package query

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Moment is a time as people write it: to a day, a minute, a second.
type Moment struct {
	From time.Time // its beginning
	To   time.Time // the last of it
}

// ParseMoment reads a time in a time zone, that of now: how long ago (90s, 1h, 7d, 2h ago), a time of day
// (03:12, of today or, if that is still to come, of yesterday), one of a day (yesterday, yesterday 03:00,
// monday 03:00, 2026-11-27 03:00), one of RFC 3339, or a number of seconds (@1764300000).
func ParseMoment(s string, now time.Time) (Moment, error) {
	word := strings.Join(strings.Fields(strings.ToLower(s)), " ")
	exact := func(t time.Time) (Moment, error) { return Moment{t, t}, nil }
	if word == "now" {
		return exact(now)
	}
	if age, err := parseAge(strings.TrimSuffix(word, " ago")); err == nil {
		return exact(now.Add(-age))
	}
	if seconds, ok := strings.CutPrefix(word, "@"); ok {
		if n, err := strconv.ParseInt(seconds, 10, 64); err == nil {
			return until(time.Unix(n, 0), time.Second), nil
		}
	}
	if t, err := time.Parse(time.RFC3339Nano, strings.ToUpper(word)); err == nil {
		if t.Nanosecond() != 0 {
			return exact(t)
		}
		return until(t, time.Second), nil
	}
	day, clock, hasDay := splitDay(word)
	date := now
	if hasDay {
		var ok bool
		if date, ok = parseDay(day, now); !ok {
			return Moment{}, errMoment(s)
		}
	}
	if clock == "" {
		if !hasDay {
			return Moment{}, errMoment(s)
		}
		return Moment{midnight(date, 0), midnight(date, 1).Add(-1)}, nil
	}
	for _, layout := range []struct {
		text string
		long time.Duration
	}{{"15:04", time.Minute}, {"15:04:05", time.Second}, {"15:04:05.999999999", 1}} {
		c, err := time.Parse(layout.text, clock)
		if err != nil {
			continue
		}
		at := func(date time.Time) time.Time {
			return time.Date(date.Year(), date.Month(), date.Day(), c.Hour(), c.Minute(), c.Second(), c.Nanosecond(), now.Location())
		}
		t := at(date)
		if !hasDay && t.After(now) {
			t = at(midnight(now, -1))
		}
		return until(t, layout.long), nil
	}
	return Moment{}, errMoment(s)
}

func errMoment(s string) error {
	return fmt.Errorf(`%q: want a time, as 1h, 03:12, yesterday, "yesterday 03:00", 2026-11-27 03:00 or one of RFC 3339`, s)
}

func until(t time.Time, long time.Duration) Moment { return Moment{t, t.Add(long - 1)} }

// midnight is the beginning of a day, or of one so many days after.
func midnight(t time.Time, days int) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day()+days, 0, 0, 0, 0, t.Location())
}

// splitDay takes a day and a time of day apart; either may be left out.
func splitDay(word string) (day, clock string, hasDay bool) {
	day, clock, both := strings.Cut(word, " ")
	switch {
	case both:
		return day, clock, true
	case len(word) > 10 && word[10] == 't' && strings.Count(word, "-") == 2:
		return word[:10], word[11:], true
	case strings.Contains(word, ":"):
		return "", word, false
	}
	return word, "", true
}

func parseDay(word string, now time.Time) (time.Time, bool) {
	switch word {
	case "today":
		return now, true
	case "yesterday":
		return midnight(now, -1), true
	}
	for d := range 7 {
		day := midnight(now, -d)
		name := strings.ToLower(day.Weekday().String())
		if len(word) >= 3 && strings.HasPrefix(name, word) {
			return day, true
		}
	}
	t, err := time.ParseInLocation("2006-01-02", word, now.Location())
	return t, err == nil
}
