//go:build !race

package keeper_test

// raceEnabled says that memory is not what it is otherwise.
const raceEnabled = false
