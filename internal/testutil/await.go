package testutil

import (
	"testing"
	"time"
)

// awaitFor is long: on a busy machine a condition takes its time, and one that never comes
// fails the test either way.
const awaitFor = time.Minute

// Await looks every millisecond whether a condition holds, and fails the test where it does not
// within a minute. It is for what there is no event to wait for.
func Await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	AwaitWithin(t, awaitFor, what, holds)
}

// AwaitWithin is Await with another limit.
func AwaitWithin(t testing.TB, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}
