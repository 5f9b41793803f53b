package model

import (
	"fmt"
	"testing"
)

func TestDelivery(t *testing.T) {
	bounds := []deliveryBounds{
		{crashes: 3, upgrades: 1},
		{crashes: 2, workerDeaths: 1},
		{crashes: 2, retakes: 1},
		{crashes: 2, workerDeaths: 1, noHolder: true},
	}
	if long() {
		bounds = []deliveryBounds{
			{crashes: 4, upgrades: 2},
			{crashes: 3, workerDeaths: 1, upgrades: 1},
			{crashes: 3, retakes: 2},
			{crashes: 2, workerDeaths: 1, retakes: 1, upgrades: 1},
		}
	}
	for _, b := range bounds {
		t.Run(fmt.Sprintf("%+v", b), func(t *testing.T) {
			t.Parallel()
			check(t, b.system())
		})
	}
}

// TestDeliverySlips shows that the search finds what it is there for.
func TestDeliverySlips(t *testing.T) {
	for name, slip := range map[string]slip{
		"looks for accepted connections whatever the journal":    enumeratesAlways,
		"reads the page before the queue":                        pageBeforeQueue,
		"does not wait for a worker that is taking":              guessesOddTurn,
		"its own holder replaces the dead one's":                 ownHolderReplaces,
		"clears the journal before it writes the ledger anew":    writesInTwoSteps,
		"a successor begins before the keeper knows":             engineBeforeKeeper,
		"a successor has the ledger before the keeper knows":     writesBeforeKeeper,
		"a successor puts its holder before the keeper knows":    putsBeforeKeeper,
		"sends without a word in the journal":                    sendsUnwritten,
		"believes the page about what it was itself taking back": pageSaysRetaken,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bounds := deliveryBounds{crashes: 2, upgrades: 1, slip: slip}
			if slip == enumeratesAlways || slip == pageSaysRetaken {
				bounds = deliveryBounds{crashes: 1, retakes: 1, slip: slip}
			}
			f := search(bounds.system())
			if f.problem == "" {
				t.Fatal("not found")
			}
			t.Log(f)
		})
	}
}
