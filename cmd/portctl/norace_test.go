//go:build !race

package main

// raceEnabled says that the test binary takes long to become a command.
const raceEnabled = false
