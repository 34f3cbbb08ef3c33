package testutil

import "testing"

// Allocs is how often do allocates, on average of so many runs. The runtime counts for the
// whole process, so what else goes on in it is counted too: of several measurements the least is true.
func Allocs(runs int, do func()) float64 {
	least := testing.AllocsPerRun(runs, do)
	for try := 1; try < 20 && least > 0; try++ {
		least = min(least, testing.AllocsPerRun(runs, do))
	}
	return least
}
