package query

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ParseAge accepts a time as time.ParseDuration does, and days, as 7d.
func ParseAge(s string) (time.Duration, error) { return parseAge(s) }

// ParseSize accepts a number of bytes, with K, M or G behind it, each alone or as KiB: 1024 of the one
// before.
func ParseSize(s string) (int64, error) {
	digits, unit := cutBefore(s, "KMGkmg")
	n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 32)
	shift, ok := map[string]int{"": 0, "K": 10, "M": 20, "G": 30}[strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(unit), "B"), "I")]
	if err != nil || n <= 0 || !ok {
		if n, err = strconv.ParseInt(s, 10, 64); err != nil || n <= 0 {
			return 0, fmt.Errorf("%q: want a size, as 256MiB, 1G or 268435456", s)
		}
		return n, nil
	}
	return n << shift, nil
}

// parseAge accepts a time as time.ParseDuration does, and days, as 7d.
func parseAge(s string) (time.Duration, error) {
	age, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok && err != nil {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		age = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || age <= 0 {
		return 0, fmt.Errorf("%q: want a time, as 90s, 1h or 7d", s)
	}
	return age, nil
}
