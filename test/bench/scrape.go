package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// scrapes times what Prometheus asks of the agent.
func (b *bench) scrapes(what string) error {
	var whole, walk, other []float64
	_, err := b.watch(b.agent(), func(*process) error {
		for range b.runs {
			time.Sleep(1100 * time.Millisecond) // within a second an answer is used again
			took, read, err := b.scrape()
			if err != nil {
				return err
			}
			whole, walk = append(whole, took), append(walk, read)
			if took, err = b.clock([]string{"ss", "-tan"}); err != nil {
				return err
			}
			other = append(other, took)
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.compare(what+" / ss -tan", whole, other, ms, "")
	b.row("    of it to read the ports and who has them", ms(median(walk)), "", "", "")
	return nil
}

// scrape returns the milliseconds that a scrape took, and what of it the agent read
// the kernel's tables.
func (b *bench) scrape() (whole, walk float64, err error) {
	start := time.Now()
	body, err := b.get("/metrics")
	whole = time.Since(start).Seconds() * 1e3
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "porthole_snapshot_duration_seconds "); ok && err == nil {
			walk, err = strconv.ParseFloat(value, 64)
		}
	}
	if err != nil {
		return 0, 0, fmt.Errorf("scrape: %w", err)
	}
	return whole, walk * 1e3, nil
}
