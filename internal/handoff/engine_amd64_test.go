package handoff_test

import "testing"

// Whichever of several acceptors is in the middle of what, the death of portd loses nothing.
func TestSeveralAcceptorsKilledAtInstruction(t *testing.T) {
	t.Setenv(envAcceptors, "4")
	TestKilledAtInstruction(t)
}
