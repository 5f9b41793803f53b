// Package model is the hand-over of sockets and of connections between daemons, keeper and holder, small enough to be searched in all
// orders of its steps.
//
// Sockets are in custody.go, connections in delivery.go; docs/MODEL.md says what is in them and what is left out. The search goes
// breadth first, so that the trace to what is found is as short as any.
package model

import (
	"fmt"
	"strings"
)

// A system is everything that can happen. Its states are values: two that are equal are one.
type system[S comparable] struct {
	start []S
	// next calls step for each thing that can happen in s: who does what, and what is then.
	next func(s S, step func(who, what string, kind kind, to S))
	// broken says which promise s breaks, or nothing.
	broken func(S) string
	// working says that all is as it should be in the end. It must be possible to come there from every state without a fault.
	working func(S) bool
	show    func(S) string
}

// A kind tells what the system does by itself from what befalls it.
type kind bool

const (
	step  kind = false
	fault kind = true
)

// found is what a search comes to.
type found struct {
	states, steps int
	// problem is empty where every promise is kept in every state. Trace leads to the state that breaks one.
	problem string
	trace   []string
}

func (f found) String() string {
	if f.problem == "" {
		return fmt.Sprintf("%d states, %d steps", f.states, f.steps)
	}
	return fmt.Sprintf("%s, after %d steps:\n%s", f.problem, len(f.trace)-1, strings.Join(f.trace, "\n"))
}

// A visit is how a state was first reached.
type visit struct {
	from      int32
	who, what string
	fault     kind
}

// search goes through all states of sys, and stops at the first that breaks a promise.
func search[S comparable](sys system[S]) found {
	var (
		states []S
		visits []visit
		at     = make(map[S]int32)
		edges  []edge // steps that are no faults
		f      found
	)
	add := func(s S, v visit) int32 {
		n, ok := at[s]
		if !ok {
			n = int32(len(states))
			at[s] = n
			states, visits = append(states, s), append(visits, v)
		}
		return n
	}
	tell := func(n int32, problem string) found {
		f.states, f.problem = len(states), problem
		f.trace = []string{"     " + sys.show(states[n])}
		for ; visits[n].from >= 0; n = visits[n].from {
			mark := ' '
			if visits[n].fault == fault {
				mark = '!'
			}
			f.trace = append(f.trace, fmt.Sprintf("   %c %s %s", mark, visits[n].who, visits[n].what))
		}
		for i, j := 1, len(f.trace)-1; i < j; i, j = i+1, j-1 {
			f.trace[i], f.trace[j] = f.trace[j], f.trace[i]
		}
		f.trace = append(f.trace[1:], f.trace[0])
		return f
	}
	for _, s := range sys.start {
		add(s, visit{from: -1})
	}
	for n := int32(0); int(n) < len(states); n++ {
		if problem := sys.broken(states[n]); problem != "" {
			return tell(n, problem)
		}
		sys.next(states[n], func(who, what string, k kind, to S) {
			f.steps++
			m := add(to, visit{n, who, what, k})
			if k == step && m != n {
				edges = append(edges, edge{n, m})
			}
		})
	}
	f.states = len(states)
	reaches := backwards(len(states), edges, func(n int) bool { return sys.working(states[n]) })
	for n, ok := range reaches {
		if !ok {
			return tell(int32(n), "it never works again")
		}
	}
	return f
}

// An edge is a step from one state to another.
type edge struct{ from, to int32 }

// backwards says of each state whether one that is wanted can be reached from it.
func backwards(states int, edges []edge, wanted func(int) bool) []bool {
	// The edges into each state lie in a row: those into n are into[first[n]:first[n+1]].
	first := make([]int32, states+2)
	for _, e := range edges {
		first[e.to+2]++
	}
	for n := 2; n < len(first); n++ {
		first[n] += first[n-1]
	}
	into := make([]int32, len(edges))
	for _, e := range edges {
		into[first[e.to+1]] = e.from
		first[e.to+1]++
	}
	reaches := make([]bool, states)
	var queue []int32
	for n := range reaches {
		if wanted(n) {
			reaches[n] = true
			queue = append(queue, int32(n))
		}
	}
	for len(queue) > 0 {
		n := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, from := range into[first[n]:first[n+1]] {
			if !reaches[from] {
				reaches[from] = true
				queue = append(queue, from)
			}
		}
	}
	return reaches
}
