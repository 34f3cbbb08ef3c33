package query

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

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
