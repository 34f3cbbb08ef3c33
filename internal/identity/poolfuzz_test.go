package identity

import (
	"fmt"
	"testing"
)

// A pool that is understood has ends in order, and a port that is reserved is
// reserved by one of its ranges; what the kernel writes is always understood.
func FuzzParsePool(f *testing.F) {
	f.Add("32768\t60999\n", "8080,9000-9010\n")
	f.Add("1 65535", "")
	f.Add("60999 32768", "9010-9000,,1-")
	f.Fuzz(func(t *testing.T, ends, reserved string) {
		p, err := ParsePool(ends, reserved)
		if err != nil {
			return
		}
		if p.Low > p.High {
			t.Errorf("%q: range %d-%d", ends, p.Low, p.High)
		}
		for _, r := range p.reserved {
			if r.low > r.high || !p.Reserved(r.low) || !p.Reserved(r.high) {
				t.Errorf("%q: reserved %d-%d", reserved, r.low, r.high)
			}
			if again, err := ParsePool(ends, fmt.Sprintf("%d-%d", r.low, r.high)); err != nil || !again.Reserved(r.low) {
				t.Errorf("%d-%d is not read back: %v", r.low, r.high, err)
			}
		}
	})
}
