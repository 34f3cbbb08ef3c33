// Package fleet has the tests of three machines that export to one place: test/vm boots them, and test/otlp asks there
// what happened. On the machine of whoever runs them they would install a package.
package fleet
