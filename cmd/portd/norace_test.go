//go:build !race

package main

// raceEnabled says that memory is not what it is otherwise.
const raceEnabled = false
