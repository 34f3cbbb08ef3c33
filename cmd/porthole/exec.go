//go:build !man

package main

import "os"

func main() {
	os.Exit(runAlone(&env{}, os.Args[1:]))
}
