package model

import (
	"os"
	"testing"
	"time"
)

func check[S comparable](t *testing.T, sys system[S]) {
	t.Helper()
	began := time.Now()
	f := search(sys)
	if f.problem != "" {
		t.Fatal(f)
	}
	t.Logf("%v, %v", f, time.Since(began).Round(time.Millisecond))
}

func long() bool { return os.Getenv("PORTD_LONG") != "" }

func TestCustody(t *testing.T) {
	bounds := custodyBounds{crashes: 3, upgrades: 2, failures: 1}
	if long() {
		bounds = custodyBounds{crashes: 5, upgrades: 3, failures: 2}
	}
	check(t, bounds.system())
}

// TestCustodyExcuse says what a portd cannot outlive: the deaths of keeper and daemon at once. One of both alone needs no excuse.
func TestCustodyExcuse(t *testing.T) {
	check(t, custodyBounds{crashes: 1, upgrades: 2, failures: 1, strict: true}.system())
	f := search(custodyBounds{crashes: 2, strict: true}.system())
	if f.problem == "" {
		t.Fatal("two deaths at once lose nothing: the excuse can go")
	}
	t.Log(f)
}

// TestCustodySlips shows that the search finds what it is there for.
func TestCustodySlips(t *testing.T) {
	for name, slip := range map[string]slip{
		"puts after the answer":                                    putsAfterAnswer,
		"releases without a barrier":                               releasesWithoutBarrier,
		"undoes without a barrier":                                 undoesWithoutBarrier,
		"serves before what nobody claimed is closed":              servesBeforeUnclaimedIsClosed,
		"freezes without waiting for the changes inside":           freezesWithoutWaiting,
		"a successor that does not wait for the keeper":            successorWithoutBarrier,
		"a predecessor that ignores GOOD":                          predecessorIgnoresGood,
		"a successor that outlives its predecessor":                successorOutlives,
		"a keeper that acts on a death before it has read":         keeperActsOnDeathFirst,
		"a keeper that spares the predecessor":                     keeperSparesPredecessor,
		"a new keeper that gets half":                              newKeeperGetsHalf,
		"a predecessor that does not close a store without a lock": storeStaysOpen,
		"a successor that serves before the other is empty":        successorServesAtOnce,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := search(custodyBounds{crashes: 2, upgrades: 1, failures: 1, slip: slip}.system())
			if f.problem == "" {
				t.Fatal("not found")
			}
			t.Log(f)
		})
	}
}
