package render

import (
	"strings"
	"testing"
)

// What is cut takes no more columns than there are, and never cuts a character apart.
func TestCut(t *testing.T) {
	for _, c := range []struct {
		text        string
		columns     int
		middle, end string
	}{
		{"nginx", 5, "nginx", "nginx"},
		{"nginx", 4, "ng…x", "ngi…"},
		{"nginx", 1, "…", "…"},
		{"nginx", 0, "", ""},
		{"", 3, "", ""},
		{"日本語", 6, "日本語", "日本語"},
		{"日本語", 5, "日…語", "日本…"},
		{"日本語", 4, "日…", "日…"},
		{"日本語", 2, "…", "…"},
		{"e\u0301e\u0301e\u0301e\u0301", 3, "e\u0301…e\u0301", "e\u0301e\u0301…"},
	} {
		if got := CutMiddle(c.text, c.columns, "…"); got != c.middle {
			t.Errorf("CutMiddle(%q, %d) = %q, want %q", c.text, c.columns, got, c.middle)
		}
		if got := CutEnd(c.text, c.columns, "…"); got != c.end {
			t.Errorf("CutEnd(%q, %d) = %q, want %q", c.text, c.columns, got, c.end)
		}
	}
	for text, want := range map[string]string{
		"[2001:db8:1234::7]:5432": "[200…::7]:5432", "192.168.100.120:5432": "192.….120:5432", "2001:db8:1234:5678::7": "2001:db…678::7", "127.0.0.1:80": "127.0.0.1:80",
	} {
		if got := CutAddress(text, 14, "…"); got != want {
			t.Errorf("CutAddress(%q, 14) = %q, want %q", text, got, want)
		}
	}
	long := strings.Repeat("a日e\u0301", 20)
	for columns := range 100 {
		for _, got := range []string{CutMiddle(long, columns, "~"), CutEnd(long, columns, "~")} {
			if n := Columns(got); n > columns {
				t.Errorf("%q takes %d columns, want at most %d", got, n, columns)
			}
		}
	}
}

// A number takes five columns at most.
func TestNumber(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 99_999: "99999", 100_000: "100k", 999_999: "999k", 1_000_000: "1.0M", 12_345_678: "12.3M", 1_000_000_000: "1G",
	} {
		if got := Number(n); got != want {
			t.Errorf("Number(%d) = %q, want %q", n, got, want)
		}
	}
}
