// Package reboot has the tests of a machine whose power is cut and that boots again with the same disk:
// test/vm boots one. On the machine of whoever runs them they would mount a disk.
package reboot
