//go:build !race

package boltstore

// raceEnabled says that everything takes several times as long.
const raceEnabled = false
